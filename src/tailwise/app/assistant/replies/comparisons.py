"""What changed between two audits."""

from __future__ import annotations

import shlex

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.functions.comparing import base_of
from tailwise.app.assistant.markdown import escape, link, prose
from tailwise.app.assistant.replies.question import Question
from tailwise.app.assistant.words import count, listed, num, signed
from tailwise.app.workspace import links

_BEFORE, _AMID = ("compare", "between", "from"), frozenset({"and", "with", "to", "against", "vs", "vs."})
_NUMBERS = ("mean_alpha", "mean_alpha_hill", "mean_stable_rank", "mean_log_spectral_norm")


def compare(question: Question) -> str:
    """Two audits: those that are named, or the one on screen and its base."""
    before, after = sides(question)
    fact = question.ask("compare", before=before, after=after)
    ends = [link(fact["before_title"], links.model(before)), link(fact["after_title"], links.model(after))]
    head = f"From {ends[0]} to {ends[1]} ({link('side by side', links.against_base(after, before))}):"
    if fact["identical"]:
        return f"{head} nothing changed; all {count(fact['layers_in_both'], 'layer')} are the same, to the byte."
    lines = [
        f"- **{prose(fact['conclusion'])}**",
        *_layers(fact, after),
        *_roles(fact),
        *_numbers(fact),
        *_structure(fact),
        *_findings(fact),
    ]
    lines += [f"- Note: {prose(note)}" for note in fact["notes"][:3]]
    return "\n\n".join([head, "\n".join(lines), _limit(question, before, after)])


def sides(question: Question) -> tuple[str, str]:
    """Before and after."""
    words = question.lower.rstrip(" ?.!").split()[-4:]  # "compare A and B" at the end
    ends = words[1::2] if len(words) == 4 and words[0].endswith(_BEFORE) and words[2] in _AMID else []
    pair = [question.titled(end) for end in ends]
    named = [name for name in pair if name] if all(pair) else question.mentioned()
    if len(named) >= 2:
        return named[0], named[1]
    after = named[0] if named else question.place.audit()
    return base_of(question.place, after), after


def _limit(question: Question, before: str, after: str) -> str:
    models = [str(question.place.workspace.audit(name).model) for name in (after, before)]
    safe = all(model.isprintable() and "`" not in model for model in models)
    first, second = [shlex.quote(model) for model in models] if safe else ["AFTER", "BEFORE"]
    return ("Whether that is better or worse, spectra do not say; they say where and how much training moved the "
            "weights. Quality is measured on text:\n\n"
            f"```bash\ntailwise evaluate {first} --against {second} --text TEXT\n```\n\n"
            "How far each matrix moved, and in which directions, is measured on the weights: `tailwise compare … "
            "--weights`.")  # fmt: skip


def _layers(fact: Fact, after: str) -> list[str]:
    lines = [f"- {fact['layers_in_both']} layers are in both, {fact['layers_identical']} of them the same to the byte."]
    for metric, changes in fact["significant_layers"].items():
        total = fact["significant_layers_in_all"][metric]
        if not total:
            lines.append(f"- No layer's {escape(metric)} changed significantly (false discovery rate "
                         f"{fact['false_discovery_rate']}).")  # fmt: skip
            continue
        shown = [
            f"{link(item['layer'], links.layer(after, item['layer']))} {num(item['before'])} → {num(item['after'])}"
            for item in changes[:3]
        ]
        lines.append(f"- {escape(metric)} changed significantly in {count(total, 'layer')}: {listed(shown, 3, total)}.")
    return lines


def _roles(fact: Fact) -> list[str]:
    lines = [f"{item['role']} {escape(item['metric'])} (median {signed(item['median_change'])}, p {num(item['p'], 2)})"
             for item in fact["significant_roles"][:4]]  # fmt: skip
    total = fact["significant_roles_in_all"]
    return [f"- Roles that moved together: {listed(lines, 4, total)}."] if lines else []


def _numbers(fact: Fact) -> list[str]:
    changes = [f"{escape(name)} {num(item['before'])} → {num(item['after'])}" for name in _NUMBERS
               if (item := fact["numbers"].get(name)) and "change" in item]  # fmt: skip
    return [f"- Means: {listed(changes)}."] if changes else []


def _structure(fact: Fact) -> list[str]:
    counts = [f"{number} {word}" for word, number in fact["structure"].items() if number]
    return [f"- Structure: {listed(counts)}."] if counts else []


def _findings(fact: Fact) -> list[str]:
    lines = []
    for key, words in (("findings_new", "New findings"), ("findings_gone", "Findings that are gone")):
        codes = [f"{link(item['code'], links.explain(item['code']))} {escape(item['title'])}" for item in fact[key]]
        lines += [f"- {words}: {listed(codes)}."] if codes else []
    return lines or ["- The same rules find something in both."]
