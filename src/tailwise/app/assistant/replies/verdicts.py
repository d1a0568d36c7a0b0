"""How a model is, which layers are worst, why, and what to do."""

from __future__ import annotations

import re

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.markdown import escape, link, prose
from tailwise.app.assistant.replies.question import CannotAnswerError, Question
from tailwise.app.assistant.words import alpha, count, listed, num, share
from tailwise.app.workspace import links

_SEVERITY = {"error": "error", "warning": "warning", "info": "note"}
_MOST = 5


#: The answer to "is it healthy?", first of all.
_YES = {"healthy": "Yes.", "needs a look": "Mixed.", "unhealthy": "No.", "no verdict": "No verdict."}
_ASKS = re.compile(r"^(so |and |but )?(is|are|does|do|was|has|can i trust|would you say)\b")


def overview(question: Question) -> str:
    """The verdict first, then numbers and findings of an audit."""
    verdict = question.ask("health", audit=question.audit())
    word, why = verdict["word"], prose(verdict["why"][:1].upper() + verdict["why"][1:])
    head = f"{_YES[word]} {why}" if _ASKS.match(question.lower) else f"**{word.capitalize()}**: {why}"
    lines = [f"- {link(one['layer'], links.layer(verdict['audit'], one['layer']))}: {prose(one['reason'])}"
             for one in verdict["worst"]]  # fmt: skip
    worst_named = ["The worst layers:\n\n" + "\n".join(lines)] if lines else []
    return "\n\n".join([head, *worst_named, _overview(question), f"Next: `{verdict['next']}`"])


def _overview(question: Question) -> str:
    name = question.audit()
    fact, diagnosis = question.ask("audit", audit=name), question.ask("diagnose", audit=name)
    numbers, findings = fact["numbers"], fact["findings"]
    lines = [f"{link(fact['title'], links.model(name))}: {count(fact['matrices'], 'matrix', 'matrices')} measured, "
             f"{num(fact['parameters'])} parameters, {count(fact['blocks'], 'block')}."]  # fmt: skip
    lines.append(_counts(findings))
    lines += [_one_line(item) for item in diagnosis["findings"][:_MOST]]
    if numbers.get("mean_alpha") is not None:
        within = f"{share(numbers['share_2_4'])} of them lie between 2 and 4"
        lines.append(f"Mean alpha is {num(numbers['mean_alpha'])} over {num(numbers['trusted_fits'])} trusted fits "
                    f"({fact['recipe']['estimator']} estimator); {within}. A mean over roles describes the spectra; it "
                    "is no measure of how good the model is.")  # fmt: skip
        question.facts.append({"well_fit": [2, 4]})
    return "\n\n".join([*lines, *_blind(diagnosis)])


def _counts(findings: Fact) -> str:
    parts = [count(findings[key], _SEVERITY[key]) for key in ("error", "warning", "info") if findings[key]]
    return f"The rules found {listed(parts)}." if parts else "The rules found nothing."


def _one_line(item: Fact) -> str:
    return f"- {_head(item)}: {prose(item['message'])}{_chart(item)}"


def _chart(item: Fact) -> str:
    return f" Chart: {link(item['chart']['text'], item['chart']['href'])}." if "chart" in item else ""


def _head(item: Fact) -> str:
    return (f"{link(item['code'], links.explain(item['code']))} **{escape(item['title'])}** "
            f"({_SEVERITY[item['severity']]}; evidence for the rule: {item['strength_of_rule']})")  # fmt: skip


def _blind(diagnosis: Fact) -> list[str]:
    left = [
        f"{item['code']} left out {listed([f'`{one}`' for one in item['layers']], 3)}: {prose(item['reason'])}."
        for item in diagnosis["not_evaluated"]
    ]
    if not diagnosis["not_looked"]:
        return left
    reasons = [f"{item['code']} ({prose(item['reason'])})" for item in diagnosis["not_looked"]]
    blind = count(len(reasons), "rule") + (" was" if len(reasons) == 1 else " were")
    return [f"{blind} not evaluated, which is not the same as fine: {listed(reasons, 3)}.", *left]


def why(question: Question) -> str:
    """What names a layer, with its numbers."""
    meant = question.layers()
    if meant.trouble:
        raise CannotAnswerError(meant.trouble)
    if not meant.rows:
        return overview(question)
    name = question.audit()
    if len(meant.rows) == 1:
        return _one_layer(question, name, meant.rows[0].name)
    diagnosis = question.ask("diagnose", audit=name, layer=meant.words if "block" in meant.words else question.text)
    words = escape(meant.words)
    rows = [row for row in meant.rows if row.measured] or list(meant.rows)
    question.facts.append({"words": meant.words, "rows": [row.name for row in rows]})
    shown = [link(row.name, links.layer(name, row.name)) for row in rows]
    head = f"{words[0].upper()}{words[1:]} has {count(len(rows), 'matrix', 'matrices')}: {listed(shown, 8)}."
    if not diagnosis["findings"]:
        return f"{head}\n\nNo finding names any of them. {_fine(diagnosis)}"
    return "\n\n".join([head, f"{count(len(diagnosis['findings']), 'finding')} name some of them:",
                        *(_finding(name, item) for item in diagnosis["findings"])])  # fmt: skip


def _fine(diagnosis: Fact) -> str:
    blind = len(diagnosis["not_looked"])
    looked = f"{count(diagnosis['rules_that_looked'], 'rule')} looked"
    return f"{looked}{f', {blind} could not' if blind else ''}; no finding means that no known pattern was seen."


def _one_layer(question: Question, audit: str, layer: str) -> str:
    fact = question.ask("layer", audit=audit, layer=layer)
    diagnosis = question.ask("diagnose", audit=audit, layer=layer)
    block = f", block {fact['block']}" if fact["block"] is not None else ""
    head = f"{link(layer, links.layer(audit, layer))} ({fact['role']}{block}, {fact['rows']} × {fact['cols']})"
    if not fact["metrics"]:
        return f"{head} was not measured: {prose(fact['reason'] or fact['status'])}."
    numbers = _beside_peers(fact)
    if not diagnosis["findings"]:
        return f"{head}: no finding names it. {_fine(diagnosis)}\n\n{numbers}"
    return "\n\n".join([f"{head} is named by {count(len(diagnosis['findings']), 'finding')}:",
                        *(_finding(audit, item) for item in diagnosis["findings"]), numbers])  # fmt: skip


def _finding(audit: str, item: Fact) -> str:
    others = item["layers_in_model"]
    many = f"; {others} layers of this model have it" if others > 1 else ""
    lines = [f"- {_head(item)}{many}.{_chart(item)}"]
    for piece in item["evidence"][:_MOST]:
        where = f"{link(piece['layer'], links.layer(audit, piece['layer']))}: " if piece["layer"] else ""
        lines.append(f"    - {where}{prose(piece['says'])}")
    if item["severity"] == "info":
        lines.append("    - It is only noted: nothing must be done for it alone.")
    else:
        lines.append(f"    - Possible causes: {prose('; '.join(item['causes']))}.")
        lines.append(f"    - What can be done: {prose('; '.join(item['remedies']))}.")
    return "\n".join(lines)


def _beside_peers(fact: Fact) -> str:
    metrics, peers = fact["metrics"], fact["peers"]
    lines = []
    for name in ("alpha", "alpha_hill", "stable_rank", "log_spectral_norm", "singular_entropy", "num_traps"):
        if metrics.get(name) is None:
            continue
        words = alpha(metrics) if name == "alpha" else f"{escape(name)} {num(metrics[name])}"
        if name in peers and peers[name]["n"] > 1:
            beside = peers[name]
            words += (f"; median of the {beside['n']} matrices of this role and shape {num(beside['median'])}, "
                      f"from {num(beside['min'])} to {num(beside['max'])}")  # fmt: skip
        lines.append(f"- {words}")
    return "Its numbers:\n\n" + "\n".join(lines)


def worst(question: Question) -> str:
    """The layers that findings name first."""
    name = question.audit()
    fact = question.ask("worst_layers", audit=name)
    if not fact["layers"]:
        return (f"No finding names a layer of the {count(fact['measured'], 'matrix', 'matrices')} measured, so none is "
                f"worse than the others by any rule. {link('All layers', links.layers(name))} can be sorted by any "
                "metric.")  # fmt: skip
    lines = []
    for item in fact["layers"]:
        codes = listed(
            [f"{one['code']} {escape(one['title'])} ({_SEVERITY[one['severity']]})" for one in item["findings"]]
        )
        says = f": {prose(item['says'])}" if item["says"] else ""
        lines.append(f"- {link(item['layer'], links.layer(name, item['layer']))}, {codes}{says}")
    mild = " All of these are notes: nothing that must be mended." if fact["worst"] == "info" else ""
    return (f"Findings name {fact['named_in_all']} of {count(fact['measured'], 'matrix', 'matrices')}.{mild} The first "
            "by severity and number of findings:\n\n" + "\n".join(lines)
            + "\n\nAlpha alone does not rank layers: roles differ in it without being better or worse.")  # fmt: skip


def remedies(question: Question) -> str:
    """What findings advise, the worst first."""
    name = question.audit()
    diagnosis = question.ask("diagnose", audit=name)
    bad = [item for item in diagnosis["findings"] if item["severity"] != "info"]
    if not bad:
        notes = [
            f"{link(item['code'], links.explain(item['code']))} {escape(item['title'])}"
            for item in diagnosis["findings"]
        ]
        also = (
            f" There {'are' if len(notes) != 1 else 'is'} {count(len(notes), 'note')}: {listed(notes)}."
            if notes
            else ""
        )
        return "\n\n".join([f"Nothing must be done: no rule found an error or a warning.{also}", *_blind(diagnosis)])
    lines = []
    for item in bad:
        code = f" In code: {listed([escape(one) for one in item['in_code']])}." if item["in_code"] else ""
        lines.append(f"- {_head(item)}: {prose('; '.join(item['remedies']))}.{code}")
    question.facts.append({"listed": len(bad)})
    return "\n\n".join(["In this order:", "\n".join(lines), *_blind(diagnosis),
                        "A remedy is what publications or theory advise for the pattern; whether it helps this model "
                        "shows an evaluation."])  # fmt: skip
