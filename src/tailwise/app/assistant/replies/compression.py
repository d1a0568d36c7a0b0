"""What can be pruned or quantized: from plans and from what was measured, not from alpha."""

from __future__ import annotations

import shlex

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.markdown import escape, link, prose
from tailwise.app.assistant.replies.question import Question
from tailwise.app.assistant.words import count, listed, num, share
from tailwise.app.workspace import links

#: Held against docs/evidence.md by a test.
PRUNED: Fact = {
    "question": "do plans by alpha prune better than uniform?",
    "model": "pycode-8m", "operator": "magnitude", "sparsity": 0.7,
    "perplexity": {"dense": 24.57, "uniform": 40.3, "alpha block": 490.4, "owl": 33.44, "auto": 31.06},
    "cells": 24, "auto_lowest": 22, "auto_worse_than_uniform_beyond_noise": 0,
    "source": "docs/evidence.md",
}  # fmt: skip
QUANTIZED: Fact = {
    "question": "what do few bits cost?",
    "model": "pycode-8m", "operator": "rtn", "allocator": "uniform",
    "perplexity": {"dense": 24.57, "at 4.5 bits": 24.78, "at 3.5 bits": 25.35, "at 3 bits": 26.36,
                   "at 2.5 bits": 29.45},
    "bits": [4.5, 3.5, 3, 2.5],
    "cells_at_3_5_bits_and_below": 12, "auto_better_than_uniform_there": 11, "auto_worse_than_uniform_beyond_noise": 0,
    "source": "docs/evidence.md",
}  # fmt: skip


def prune(question: Question) -> str:
    """Which layers can be pruned."""
    name = question.audit()
    fact = question.ask("audit", audit=name)
    question.facts.append(PRUNED)
    at, sparsity = PRUNED["perplexity"], PRUNED["sparsity"]
    lines = [
        "The audit cannot say: **alpha does not tell which layers can be spared.** That was measured. On "
        f"{PRUNED['model']}, {share(sparsity)} pruned by {PRUNED['operator']}, perplexity went from {at['dense']} to "
        f"{at['uniform']} with the same amount everywhere, to {at['alpha block']} with a plan by alpha, and to "
        f"{at['auto']} with a plan found by trial (`auto`). `auto` had the lowest perplexity in "
        f"{PRUNED['auto_lowest']} of {PRUNED['cells']} cells (two small models, three ways to prune, four amounts).",
        *_plans(question, name, "prune"),
        "To find out for this model, let plans be tried on text of its kind:",
        _commands([f"tailwise plan prune {_model(fact)} --sparsity 0.5 --calibration TEXT -o plan.json",
                   f"tailwise apply plan.json {_model(fact)} -o pruned",
                   f"tailwise evaluate pruned --against {_model(fact)} --text TEXT"]),
    ]  # fmt: skip
    question.facts.append({"commands": {"sparsity": 0.5}})
    return "\n\n".join(lines)


def quantize(question: Question) -> str:
    """Whether few bits will do."""
    name = question.audit()
    fact, diagnosis = question.ask("audit", audit=name), question.ask("diagnose", audit=name)
    question.facts.append(QUANTIZED)
    question.facts.append({"commands": {"bits": 4.5}})
    at = QUANTIZED["perplexity"]
    jumps = [item for item in diagnosis["findings"] if item["code"] in ("TW401", "TW205", "TW601")]
    warned = [f"Findings that bear on it: {listed([_found(item) for item in jumps])}."] if jumps else []
    return "\n\n".join([
        "The audit alone cannot say: what a format costs depends on the values and on the inputs, and is measured. On "
        f"{QUANTIZED['model']}, rounded to nearest, uniform: perplexity {at['dense']} dense, {at['at 4.5 bits']} at "
        f"4.5 bits, {at['at 3.5 bits']} at 3.5, {at['at 3 bits']} at 3 and {at['at 2.5 bits']} at 2.5 bits per weight. "
        "So 4.5 bits were nearly free there, and uneven plans paid off at 3.5 bits and below: `auto` beat uniform in "
        f"{QUANTIZED['auto_better_than_uniform_there']} of {QUANTIZED['cells_at_3_5_bits_and_below']} cells.",
        *warned,
        *_plans(question, name, "quantize"),
        "To find out for this model (the first command compares every matrix in every format, without text):",
        _commands([f"tailwise precision {_model(fact)}",
                   f"tailwise plan quantize {_model(fact)} --bits 4.5 --formats int4-g64,int8 --calibration TEXT "
                   "-o bits.json",
                   f"tailwise apply bits.json {_model(fact)} -o quantized",
                   f"tailwise evaluate quantized --against {_model(fact)} --text TEXT"]),
    ])  # fmt: skip


def one_plan(question: Question) -> str:
    """The plan on screen, or the one that is named."""
    entries = question.place.workspace.entries("plan")
    named = [entry.id for entry in entries if entry.id in question.text or entry.title in question.text]
    fact = question.ask("plan", plan=named[0] if len(named) == 1 else "")
    head = (f"{link(fact['title'], links.plan(fact['plan']))} is a plan to {fact['kind']} ({escape(fact['operator'])}, "
            f"{escape(fact['allocator'])}): {escape(fact['amount'])} over {count(fact['tensors'], 'tensor')}, "
            f"{num(fact['parameters'])} parameters.")  # fmt: skip
    notes = "\n".join(f"- {prose(note)}" for note in fact["notes"][:3])
    return "\n\n".join([part for part in (head, _extremes(fact), _trial(fact), notes) if part])


def _plans(question: Question, audit: str, kind: str) -> list[str]:
    plans = question.ask("plans_for", audit=audit, kind=kind)
    if not plans["plans"]:
        return [f"There is no plan to {kind} these weights here yet."]
    newest = plans["plans"][0]
    fact = question.ask("plan", plan=newest["plan"])
    return [
        f"Here for these weights: {count(plans['plans_in_all'], 'plan')} to {kind}. The newest is "
        f"{link(newest['title'], links.plan(newest['plan']))} ({escape(fact['allocator'])}, {escape(fact['amount'])}). "
        f"{_extremes(fact)} {_trial(fact)}"
    ]


def _extremes(fact: Fact) -> str:
    most, least = ([_entry(item) for item in fact[side][:3]] for side in ("most", "least"))
    return f"It takes most from {listed(most)}; least from {listed(least)}."


def _entry(item: Fact) -> str:
    parts = [share(item["sparsity"])] if item.get("sparsity") is not None else []
    parts += [escape(item["format"])] if item.get("format") else []
    return f"{escape(item['tensor'])} ({', '.join(parts)})"


def _trial(fact: Fact) -> str:
    if fact["was_tried"]:
        return f"It is the best of {fact['tried_in_all']} tried on text; what it costs, `tailwise evaluate` measures."
    return "It was **not** tried on text, so nothing is known of what it costs."


def _found(item: Fact) -> str:
    return f"{link(item['code'], links.explain(item['code']))} {escape(item['title'])} ({prose(item['message'])})"


def _model(fact: Fact) -> str:
    """The model's name as a shell takes it; one that holds what a fence would end is left to the reader."""
    name = str(fact["model"])
    return shlex.quote(name) if name.isprintable() and "`" not in name else "MODEL"


def _commands(lines: list[str]) -> str:
    return "```bash\n" + "\n".join(lines) + "\n```"
