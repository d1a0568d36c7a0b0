"""What words, numbers, charts and codes mean; and what there is."""

from __future__ import annotations

from tailwise.assistant.answer import Fact
from tailwise.assistant.markdown import escape, link, prose
from tailwise.assistant.replies.question import Question
from tailwise.assistant.words import bare, count, listed
from tailwise.errors import TailwiseError
from tailwise.workspace import links


def explain(question: Question, topic: str) -> str:
    """One topic; of a rule also whether it found something here."""
    fact = question.ask("explain", topic=topic)
    text = _SAY[fact["kind"]](fact)
    if fact["kind"] == "rule":
        text += _found_here(question, topic)
    return text


def _metric(fact: Fact) -> str:
    unit = f" Unit: {escape(fact['unit'])}." if fact["unit"] else ""
    bands = f"\n\n{prose(fact['bands'])}" if "bands" in fact else ""
    return (f"{_head(fact)}: {prose(fact['summary'])}\n\nFormula: {prose(fact['formula'])}.{unit} "
            f"Source: {prose(fact['source'])}.{bands}")  # fmt: skip


def _rule(fact: Fact) -> str:
    bounds = [f"{escape(item['name'])} {bare(item['value'])} ({escape(item['unit'])})" for item in fact["thresholds"]]
    parts = [
        f"{_head(fact)} is {_RULE[fact['kind']]} **{escape(fact['title'])}** ({fact['severity']}; evidence for the "
        f"rule: {fact['strength_of_rule']}).",
        f"What it looks for: {prose(fact['summary'])}",
        f"Possible causes: {prose('; '.join(fact['causes']))}.",
        f"What can be done: {prose('; '.join(fact['remedies']))}.",
    ]
    if bounds:
        parts.append(f"Thresholds: {listed(bounds, 12)}.")
    if fact["references"]:
        parts.append(f"See: {prose('; '.join(fact['references']))}.")
    return "\n\n".join(parts)


def _chart(fact: Fact) -> str:
    note = f" {prose(fact['note'])}" if fact["note"] else ""
    return (f"{_head(fact)}, “{escape(fact['title'])}”: {prose(fact['reading'])}{note}\n\n"
            f"- Good: {prose(fact['good'])}\n- Bad: {prose(fact['bad'])}")  # fmt: skip


def _term(fact: Fact) -> str:
    return f"{_head(fact)}: {prose(fact['summary'])} (Source: {prose(fact['source'])}.)"


def _head(fact: Fact) -> str:
    return link(fact["topic"], links.explain(fact["topic"]))


_RULE = {"rule": "the rule", "alarm": "the alarm"}
_SAY = {"metric": _metric, "rule": _rule, "alarm": _rule, "chart": _chart, "term": _term}


def _found_here(question: Question, code: str) -> str:
    try:
        name = question.audit()
    except TailwiseError:
        return ""
    found = question.ask("diagnose", audit=name)
    title = link(question.place.workspace.entry(name, "audit").title, links.model(name))
    for item in found["findings"]:
        if item["code"] == code:
            shown = [link(one, links.layer(name, one)) for one in item["layers"]]
            where = f" Layers: {listed(shown, 5, item['layers_in_all'])}." if shown else ""
            return f"\n\nIn {title} it found: {prose(item['message'])}{where}"
    for item in found["not_looked"]:
        if item["code"] == code:
            return f"\n\nIn {title} it could not look: {prose(item['reason'])}."
    return f"\n\nIn {title} it found nothing."


def chart(question: Question) -> str:
    """The chart on screen, on the audit on screen."""
    text = explain(question, question.place.screen.chart or "")
    return f"{text}\n\nThe audit's findings say what was seen in the numbers behind it; ask “which layers are worst?”."


def listing(question: Question) -> str:
    """All audits, plans and runs."""
    fact = question.ask("list")
    parts = [_listed(fact, "audits", "audit", links.model), _listed(fact, "plans", "plan", links.plan)]
    runs = [link(item["name"], links.run(item["name"])) for item in fact["runs"]]
    parts.append(f"{count(len(runs), 'training run')}: {listed(runs, 12)}." if runs else
                 f"No training runs{': ' + prose(fact['runs_note']) if 'runs_note' in fact else ''}.")  # fmt: skip
    return "\n\n".join(parts)


def _listed(fact: Fact, key: str, name: str, address: object) -> str:
    total = fact[f"{key}_in_all"]
    if not total:
        return f"No {key}."
    shown = [link(item["title"], address(item[name])) for item in fact[key]]  # type: ignore[operator]
    return f"{count(total, name)}: {listed(shown, 12, total)}."


#: Questions that are understood.
EXAMPLES = (
    "is this model healthy?",
    "which layers are worst?",
    "why is layer 3 red?",
    "what should I do?",
    "is it over-trained?",
    "what is alpha?",
    "what does TW101 mean?",
    "how do I read this chart?",
    "what is the stable rank of block 3 mlp up?",
    "which layers can I prune?",
    "can I quantize to int4?",
    "what does this plan do?",
    "is this fine-tune worse than its base?",
    "what changed in training?",
    "which models are here?",
)


def abilities(question: Question) -> str:
    """What can be asked."""
    question.facts.append({"examples": list(EXAMPLES)})
    shown = "\n".join(f"- {example}" for example in EXAMPLES)
    return (
        "I answer from the audits, plans and runs here, and understand questions such as:"
        f"\n\n{shown}\n\nWith a language model connected (settings), questions can be asked in any words."
    )
