"""Questions about one pattern: is it over-trained, can alpha be trusted, has anything collapsed."""

from __future__ import annotations

from collections.abc import Mapping

from tailwise.app.assistant.markdown import escape, link, prose
from tailwise.app.assistant.question_wording import Wording
from tailwise.app.assistant.replies.question import Question
from tailwise.app.assistant.words import listed
from tailwise.app.workspace import links

#: Words of a question → the rules that look for it.
TOPICS: Mapping[Wording, tuple[str, ...]] = {
    Wording(r"under-?\s?(train|fit)|train (it |this )?(for )?(longer|more)|not trained|untrained|trained enough"):
        ("TW201", "TW202", "TW203", "TW303"),
    Wording(r"over-?\s?(train|fit)|memori[sz]"): ("TW204", "TW205"),
    Wording(r"\btrust\b|\breliable\b|good fit|fit(s|ted)? well|\bfit error"): ("TW501", "TW502"),
    Wording(r"depth|deep layers|deeper"): ("TW101", "TW102"),
    Wording(r"collaps|low[- ]rank|rank[- ]defic"): ("TW301", "TW302", "TW603"),
    Wording(r"blow|explo|\bjump"): ("TW401",),
    Wording(r"\bnans?\b|\binf(inite|inity)?\b|not finite"): ("TW601",),
    Wording(r"duplicate|identical|the same layer"): ("TW604",),
    Wording(r"\bdead\b|\bzero (row|col)"): ("TW602",),
    Wording(r"isotrop|random (matri|layer)|\bnoise\b"): ("TW201", "TW303"),
}  # fmt: skip


def topic_of(question: Question) -> tuple[str, ...]:
    """The rules that a question is about."""
    return next((codes for wording, codes in TOPICS.items() if wording.fits(question.lower)), ())


def topic(question: Question) -> str:
    """What each of the rules said of the audit."""
    name = question.audit()
    diagnosis = question.ask("diagnose", audit=name)
    findings = {item["code"]: item for item in diagnosis["findings"]}
    blind = {item["code"]: item for item in diagnosis["not_looked"]}
    lines = []
    for code in topic_of(question):
        what = question.ask("explain", topic=code)
        head = f"- {link(code, links.explain(code))} **{escape(what['title'])}** (rule: {what['strength_of_rule']})"
        if code in findings:
            layers = [link(one, links.layer(name, one)) for one in findings[code]["layers"]]
            where = f" Layers: {listed(layers, 3, findings[code]['layers_in_all'])}." if layers else ""
            severity = {"info": "note"}.get(findings[code]["severity"], findings[code]["severity"])
            lines.append(f"{head} found, as {severity}: {prose(findings[code]['message'])}{where}")
        elif code in blind:
            lines.append(f"{head} was not evaluated: {prose(blind[code]['reason'])}.")
        else:
            lines.append(f"{head} found nothing.")
    title = link(question.place.workspace.entry(name, "audit").title, links.model(name))
    return (f"Of {title}, the rules that look for this say:\n\n" + "\n".join(lines)
            + "\n\nThese are patterns of the weights. Losses on text that training has not seen decide: "
            "`tailwise evaluate`.")  # fmt: skip
