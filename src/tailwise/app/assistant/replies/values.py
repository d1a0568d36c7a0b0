"""The numbers of layers: one metric of one layer, its spread, its extremes, and where it is beyond a bound."""

from __future__ import annotations

import re
from collections.abc import Callable

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.charts import chart_of
from tailwise.app.assistant.markdown import escape, link
from tailwise.app.assistant.question_wording import Wording
from tailwise.app.assistant.replies.concepts import explain
from tailwise.app.assistant.replies.question import CannotAnswerError, Question
from tailwise.app.assistant.words import alpha, count, num
from tailwise.app.workspace import links

_MOST = 5
_MOST_LISTED = 10
_SIGNS = {">=": ">=", "<=": "<=", ">": ">", "<": "<", "above": ">", "over": ">", "greater than": ">", "more than": ">",
          "larger than": ">", "at least": ">=", "below": "<", "under": "<", "less than": "<", "smaller than": "<",
          "at most": "<="}  # fmt: skip
BOUND = re.compile(rf"({'|'.join(_SIGNS)}) ?(\d{{1,12}}(?:\.\d{{1,12}})?)")
HIGH = Wording(r"\b(highest|largest|biggest|max|maximum|most|top)\b")
LOW = Wording(r"\b(lowest|smallest|min|minimum|least)\b")


def number(question: Question, metric: str) -> str:
    """One metric of the layers that a question names."""
    meant = question.layers()
    if meant.trouble:
        raise CannotAnswerError(meant.trouble)
    name = question.audit()
    if not meant.rows:
        return extremes(question, metric)
    if len(meant.rows) == 1:
        fact = question.ask("layer", audit=name, layer=meant.rows[0].name)
        if fact["metrics"].get(metric) is None:
            why = fact["reason"] or "the audit does not have it"
            raise CannotAnswerError(f"{meant.rows[0].name} has no {metric}: {why}")
        words = alpha(fact["metrics"]) if metric == "alpha" else f"{escape(metric)} is {num(fact['metrics'][metric])}"
        peers = fact["peers"].get(metric)
        beside = (
            f" The median of the {peers['n']} matrices of this role and shape is {num(peers['median'])}."
            if peers
            else ""
        )
        return f"{link(meant.rows[0].name, links.layer(name, meant.rows[0].name))}: {words}.{beside}"
    names = {row.name for row in meant.rows}
    condition = " and ".join(f"{column} = {value}" for column, value in _common(meant.rows))
    fact = question.ask("query", audit=name, columns=f"role,block,{metric}", where=condition, limit=50)
    rows = [row for row in fact["layers"] if row["name"] in names]
    lines = [f"- {link(row['name'], links.layer(name, row['name']))}: {num(row[metric])}" for row in rows]
    return f"{escape(metric)} of {escape(meant.words)}:\n\n" + "\n".join(lines)


def _common(rows: tuple[object, ...]) -> list[tuple[str, object]]:
    common = []
    for column in ("block", "role"):
        values = {getattr(row, column) for row in rows}
        if len(values) == 1 and None not in values:
            common.append((column, values.pop()))
    return common


def metric_here(question: Question, metric: str) -> str:
    """A metric without a layer: what it is, and its spread in the audit on screen."""
    text = explain(question, metric)
    name = question.audit()
    fact = question.ask("audit", audit=name)
    spreads = [(item["role"], item[metric]) for item in fact["roles"] if item.get(metric)]
    lines = [f"- {role}: median {num(spread['median'])}, {num(spread['min'])} to {num(spread['max'])} "
             f"({count(spread['n'], 'matrix', 'matrices')})" for role, spread in spreads]  # fmt: skip
    chart = chart_of(name, metric)
    where = f"In {link(fact['title'], links.model(name))}, by role ({link(chart.text, chart.href)}):"
    return f"{text}\n\n{where}\n\n" + "\n".join(lines) if lines else text


def beyond(question: Question, metric: str) -> str:
    """The layers with a metric above or below a number."""
    match = BOUND.search(question.lower)
    assert match is not None  # noqa: S101 - the intent looked
    sign, number = _SIGNS[match[1]], match[2]
    name, meant = question.audit(), question.layers()
    places = " and ".join(f"{column} = {value}" for column, value in _common(meant.rows))
    condition = f"{metric} {sign} {number}"
    fact = question.ask("query", audit=name, columns=f"role,block,{metric}", sort=metric, descending=sign[0] == ">",
                        where=f"{condition} and {places}" if places else condition, limit=_MOST_LISTED)  # fmt: skip
    question.facts.append({"asked": condition})
    page = link("in the table", links.layers(name, q=condition))
    among = f" of {escape(meant.words)}" if places else ""
    head = f"{fact['matching']} of {count(fact['of'], 'layer')} have {escape(condition)}{among} ({page})"
    if not fact["layers"]:
        return f"{head}."
    lines = [f"- {link(row['name'], links.layer(name, row['name']))}: {num(row[metric])}" for row in fact["layers"]]
    return f"{head}:\n\n" + "\n".join(lines)


AGGREGATE = Wording(r"\b(mean|average|avg|median|typical|overall)\b|\b(by|per|for each|of each) role\b")
_HOW = {"median": Wording(r"\bmedian|typical"), "mean": Wording(r"\bmean|average|avg|overall")}


def aggregate(question: Question, metric: str) -> str:
    """Mean or median of a metric over the model, a role or several, with how many matrices it stands on."""
    name, meant = question.audit(), question.layers()
    roles = list(dict.fromkeys(row.role for row in meant.rows))
    fact = question.ask("aggregate", audit=name, metric=metric, role=roles[0] if len(roles) == 1 else "")
    how = next((key for key, wording in _HOW.items() if wording.fits(question.lower)), "")
    asked_alone, how = not how, how or "median"
    by_role = [item for item in fact["by_role"] if not roles or item["role"] in roles]
    lines = [f"- {item['role']}: {_counted(item, how)}" for item in by_role]
    split = len(by_role) > 1 and (len(roles) > 1 or re.search(r"\brole", question.lower) is not None)
    if len(roles) > 1 or (split and asked_alone):
        return f"{how.capitalize()} {escape(metric)} by role:\n\n" + "\n".join(lines)
    where = f" of {roles[0]}" if len(roles) == 1 else ""
    head = f"{how.capitalize()} {escape(metric)}{where}: {_counted(fact, how)}."
    note = " Roles differ in it; compare within a role." if not where and len(fact["by_role"]) > 1 else ""
    return head + note + ("\n\nBy role:\n\n" + "\n".join(lines) if split else "")


def _counted(item: Fact, how: str) -> str:
    if not item["counted"]:
        return f"no verdict (0 of {item['matrices']} fits trusted)"
    trusted = f" of {item['matrices']}" if item["left_out"] else ""
    return f"{num(item[how])} (over {item['counted']}{trusted}, from {num(item['min'])} to {num(item['max'])})"


def _findings_counted(fact: Fact) -> str:
    findings = fact["findings"]
    kinds = count(findings["error"], "error"), count(findings["warning"], "warning"), count(findings["info"], "note")
    return f"{kinds[0]}, {kinds[1]} and {kinds[2]}."


def _not_measured(fact: Fact) -> str:
    why = (f"{number} {escape(status.lower().replace('_', ' '))}" for status, number in fact["not_measured"].items())
    return f"Not measured: {', '.join(why) or 'none'}."


_LAYERS, _NOTHING = Wording(r"layer|matri"), Wording()
#: What is said, what is not said beside it, and the answer.
_COUNTS: tuple[tuple[Wording, Wording, Callable[[Fact], str]], ...] = (
    (Wording(r"\bparam|\bweights\b"), _NOTHING, lambda fact: (
        f"{num(fact['parameters'])} parameters are in the {count(fact['matrices'], 'matrix', 'matrices')} measured.")),
    (Wording(r"\bblocks?\b(?! ?\d)"), _LAYERS, lambda fact: f"{count(fact['blocks'], 'block')}."),
    (Wording(r"\b(finding|warning|error|problem|note|issue)"), _NOTHING, _findings_counted),
    (Wording(r"\btrusted|\bfits?\b"), _NOTHING, lambda fact: (
        f"{num(fact['numbers'].get('trusted_fits', 0))} of {count(fact['matrices'], 'fit')} of alpha are trusted.")),
    (Wording(r"not measured|unmeasured|left out|skipped"), _NOTHING, _not_measured),
)  # fmt: skip


def how_many(question: Question) -> str:
    """How many matrices, blocks, parameters or findings there are, of a role where one is named."""
    name, asked = question.audit(), question.lower
    fact = question.ask("audit", audit=name)
    for wording, without, reply in _COUNTS:
        if wording.fits(asked) and not without.fits(asked):
            return reply(fact)
    meant = question.layers()
    if meant.rows and meant.words:
        rows = [row for row in meant.rows if row.measured]
        question.facts.append({"words": meant.words, "rows": len(rows), "of": fact["matrices"]})
        return f"{count(len(rows), 'matrix', 'matrices')} of {fact['matrices']}: {escape(meant.words)}."
    roles = [f"- {item['role']}: {item['matrices']}" for item in fact["roles"]]
    left = sum(fact["not_measured"].values())
    question.facts.append({"not_measured_in_all": left})
    return (f"{count(fact['matrices'], 'matrix', 'matrices')} were measured in {count(fact['blocks'], 'block')}, "
            f"{left} tensors were not. By role:\n\n" + "\n".join(roles))  # fmt: skip


def extremes(question: Question, metric: str) -> str:
    """Where a metric is highest and lowest."""
    name, meant = question.audit(), question.layers()
    condition = " and ".join(f"{column} = {value}" for column, value in _common(meant.rows))
    among = {row.name for row in meant.rows}
    high, low = HIGH.fits(question.lower), LOW.fits(question.lower)
    parts = []
    for words, down in (("Highest", True), ("Lowest", False)):
        if (down and low and not high) or (not down and high and not low):
            continue
        fact = question.ask("query", audit=name, columns=f"role,block,{metric}", sort=metric, descending=down,
                            where=condition, limit=50 if among else _MOST)  # fmt: skip
        rows = [row for row in fact["layers"] if row[metric] is not None and (not among or row["name"] in among)]
        lines = [f"- {link(row['name'], links.layer(name, row['name']))}: {num(row[metric])}" for row in rows[:_MOST]]
        within = f" of {escape(meant.words)}" if meant.words else ""
        parts.append(f"{words} {escape(metric)}{within}:\n\n" + "\n".join(lines))
    chart = chart_of(name, metric)
    parts.append(f"Along depth: {link(chart.text, chart.href)}. Compare within a role and shape; across roles a "
                 "difference says little.")  # fmt: skip
    return "\n\n".join(parts)
