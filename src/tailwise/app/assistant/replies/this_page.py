"""Questions of a word or two that only the page tells the meaning of: `is it healthy?`, `what is this?`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from tailwise.app.assistant.markdown import link, prose
from tailwise.app.assistant.replies.compression import one_plan
from tailwise.app.assistant.replies.question import CannotAnswerError, Question
from tailwise.app.assistant.replies.training_runs import training
from tailwise.app.assistant.words import count
from tailwise.app.others import others
from tailwise.app.workspace import links

_MEANT = re.compile(
    r"\b(this|it|its|these|they|here|page|folder|everything|all)\b|\bhealthy?\b|\bsumm|\boverview\b|still running|"
    r"what (should|can|must) i do|what('s| has)? changed|which (one )?is (the )?(worst|best|sick)|\bworst\b"
)
_ELSEWHERE = re.compile(
    r"\blayers?\b|\bmatri|\bblock \d|\bquanti|\bprun|\bint ?\d|\bbits?\b|\bcompar|\bbase\b|\btrain|\balarm|\bloss\b|"
    r"tuned?\b"
)
_MOST = 12


def of_page(question: Question) -> Callable[[Question], str] | None:
    """What answers such a question on the page of a run, a plan, a file or a folder."""
    screen = question.place.screen
    if screen.audit or screen.audits or question.mentioned() or not _MEANT.search(question.lower):
        return None
    if screen.plan:
        return one_plan
    if _ELSEWHERE.search(question.lower):
        return None
    if screen.run:
        return training
    if screen.file:
        return file
    several = len(question.place.workspace.entries("audit")) > 1
    return folder if screen.area == "models" and several else None


def file(question: Question) -> str:
    """The comparison or the precision study on screen."""
    wanted = question.place.screen.file
    row = next((one for one in others(question.place.workspace) if one.id == wanted), None)
    if row is None:
        raise CannotAnswerError("that file is not here any more", "look at the list of models again")
    question.facts.append({"file": row.title, "kind": row.kind, "says": row.says})
    kind = {"comparison": "a comparison of audits", "precision": "a precision study"}.get(row.kind, row.kind)
    return f"{link(row.title, links.file(row.id))} is {kind}. {prose(row.says)}"


def folder(question: Question) -> str:
    """Every audit of the folder with its verdict, the newest first."""
    entries = question.place.workspace.entries("audit")
    lines, words = [], Counter[str]()
    for entry in entries[:_MOST]:
        try:
            found = question.ask("health", audit=entry.id)
        except CannotAnswerError as trouble:
            lines.append(f"- {link(entry.title, links.model(entry.id))}: {prose(trouble.what)}")
            continue
        words[found["word"]] += 1
        lines.append(f"- {link(entry.title, links.model(entry.id))}: **{found['word']}**: {prose(found['why'])}")
    left = len(entries) - len(lines)
    question.facts.append({"audits": len(entries), "of_each": dict(words), "not_looked_at": left})
    head = "; ".join(f"{number} {word}" for word, number in words.most_common())
    more = f"\n\n{left} older ones were not looked at; name one." if left else ""
    return f"{count(len(entries), 'audit')} here: {head}.\n\n" + "\n".join(lines) + more
