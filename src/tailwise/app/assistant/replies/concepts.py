"""What words, numbers, charts and codes mean; and what there is."""

from __future__ import annotations

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.markdown import escape, link, prose
from tailwise.app.assistant.readings import ValueMeaning
from tailwise.app.assistant.replies.question import Question
from tailwise.app.assistant.words import bare, count, listed
from tailwise.app.workspace import links
from tailwise.core.errors import TailwiseError


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


_INPUTS = ("embed", "pos_embed", "patch_embed")
_RULE = {"rule": "the rule", "alarm": "the alarm"}
_SAY = {"metric": _metric, "rule": _rule, "alarm": _rule, "chart": _chart, "term": _term}


def _found_here(question: Question, code: str) -> str:
    try:
        name = question.audit()
    except TailwiseError:
        return ""
    diagnosis = question.ask("diagnose", audit=name)
    title = link(question.place.workspace.entry(name, "audit").title, links.model(name))
    for item in diagnosis["findings"]:
        if item["code"] == code:
            shown = [link(one, links.layer(name, one)) for one in item["layers"]]
            where = f" Layers: {listed(shown, 5, item['layers_in_all'])}." if shown else ""
            return f"\n\nIn {title} it found: {prose(item['message'])}{where}"
    for item in diagnosis["not_looked"]:
        if item["code"] == code:
            return f"\n\nIn {title} it was not evaluated: {prose(item['reason'])}."
    return f"\n\nIn {title} it found nothing."


def reading(question: Question, value_meaning: ValueMeaning) -> str:
    """What some value is said to mean, and where to look."""
    question.facts.append(
        {"reading": value_meaning.title, "meaning": value_meaning.meaning, "source": value_meaning.source}
    )
    see = [link(name, links.explain(name)) for name in value_meaning.see]
    more = f" See {listed(see, 4)}." if see else ""
    # Names of numbers stay as they are: a capital τ is a T, and there is no DetX.
    first = value_meaning.title.split()[0]
    title = escape(
        value_meaning.title[:1].upper() + value_meaning.title[1:]
        if first.isascii() and first.islower()
        else value_meaning.title
    )
    return f"**{title}**: {value_meaning.meaning} (Source: {prose(value_meaning.source)}.){more}"


def ends(question: Question) -> str:
    """Which layers are near the data, and which near the labels."""
    name = question.audit()
    rows = [layer.row for layer in question.place.workspace.audit(name)]
    blocks = sorted({row.block for row in rows if row.block is not None})
    inputs = [row.name for row in rows if row.block is None and row.role in _INPUTS]
    outputs = [row.name for row in rows if row.block is None and row.role not in _INPUTS]
    question.facts.append({"near_data": inputs, "near_labels": outputs, "blocks": blocks[:1] + blocks[-1:]})
    title = link(question.place.workspace.entry(name, "audit").title, links.model(name))
    if not blocks:
        return f"{title} has no numbered blocks: its layers are in the order of the file, the first nearest the data."
    shown = [[link(one, links.layer(name, one)) for one in side] for side in (inputs, outputs)]
    first = f"{listed(shown[0], 3)}, then block {blocks[0]}" if inputs else f"block {blocks[0]}"
    last = f"block {blocks[-1]}, then {listed(shown[1], 3)}" if outputs else f"block {blocks[-1]}"
    return (f"In {title}, nearest the data: {first}. Nearest the labels: {last}. Charts along depth run the same way, "
            "data on the left.")  # fmt: skip


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
    "what does alpha below 2 mean?",
    "which layers are near the data?",
    "how often should I audit?",
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
