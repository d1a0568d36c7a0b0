"""Writes the pages that are made from the code: see `pages`.

    python docs/generate.py

A test fails where a page differs from what this script gives.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo

import tailwise
from tailwise.audits.weightwatcher import COLUMNS, DIFFERENT
from tailwise.checkpoints.roles import ROLES
from tailwise.cli.filled_help import filled
from tailwise.cli.main import app
from tailwise.compression.choosing.amounts import ALLOCATORS
from tailwise.compression.operators.registered import operators_that
from tailwise.core.recipe import Recipe
from tailwise.core.registry import Registry
from tailwise.judging.diagnosis.rule import RULES, AuditRule
from tailwise.judging.rules import Rule
from tailwise.judging.thresholds import TABLE
from tailwise.number_formats.formats import FORMATS, parse_format
from tailwise.number_formats.ggml_blocks import BLOCK
from tailwise.number_formats.ggml_types import GgmlFormat
from tailwise.number_formats.number_format import NumberFormat
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.report.charts.chart import CHARTS, Chart, remedy
from tailwise.spectrum.metrics.facts import selected
from tailwise.spectrum.metrics.metric import METRICS, Metric
from tailwise.training.alarm_rule import ALARM_RULES

HERE = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py. Change the code, not this page. -->\n"


def pages() -> dict[str, str]:
    """File name → text of every generated page."""
    return {"commands.md": commands(), "metrics.md": metrics(), "rules.md": rules(), "charts.md": charts(),
            "api.md": api(), "formats.md": with_parts("formats.md", {"formats": formats}),
            "plans.md": with_parts("plans.md", {"allocators": allocators}),
            "checkpoints.md": with_parts("checkpoints.md", {"zoo": zoo, "roles": roles}),
            "prune.md": with_parts("prune.md", {"families": families})}  # fmt: skip


def with_parts(page: str, parts: dict[str, Callable[[], str]]) -> str:
    """A page that was written by hand, with the parts between its marks as the code has them.

    A part lies between `<!-- NAME: written by … -->` and `<!-- NAME: end -->`.
    """
    text = (HERE / page).read_text(encoding="utf-8")
    for name, make in parts.items():
        before, start, rest = re.split(rf"(<!-- {name}: written by [^\n]*-->\n)", text)
        after = rest.partition(f"<!-- {name}: end -->")[2]
        text = f"{before}{start}\n{make()}\n\n<!-- {name}: end -->{after}"
    return text


def commands() -> str:
    """Every command with its arguments and options."""
    parts = [
        f"# Commands\n\n{NOTE}",
        "`tailwise COMMAND --help` prints the same in the terminal; `tailwise --version` prints the version.",
        "Exit codes: 0 success, 1 another error, 2 a wrong request, 3 an input (or one of its matrices) that could "
        "not be read, 130 interrupted.",
    ]
    for name, callback in commands_of(app):
        arguments, options = _parameters(callback)
        usage = " ".join([f"tailwise {name}", *arguments, *(["[OPTIONS]"] if options else [])])
        parts.append(f"## {name}\n\n{inspect.getdoc(callback)}\n\n```text\n{usage}\n```")
        rows = [[f"`{usage}`", text, ""] for usage, text in arguments.items()]
        for panel, lines in options.items():
            rows += [[f"**{panel}**", "", ""], *lines]
        parts.append(_table(["", "what it does", "default"], rows))
    return "\n\n".join(parts) + "\n"


def commands_of(group: typer.Typer, above: str = "") -> Iterable[tuple[str, Callable[..., Any]]]:
    """Name and function of every command, those of groups within included: "plan prune"."""
    for info in group.registered_commands:
        if info.callback is not None:
            yield above + (info.name or info.callback.__name__.replace("_", "-")), info.callback
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from commands_of(inner.typer_instance, f"{above}{inner.name or inner.typer_instance.info.name} ")


def _parameters(command: Callable[..., Any]) -> tuple[dict[str, str], dict[str, list[list[str]]]]:
    """Arguments (usage → help), and options by panel (rows of a table)."""
    arguments: dict[str, str] = {}
    options: dict[str, list[list[str]]] = {}
    hints = typing.get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, info = typing.get_args(hints[name])
        if isinstance(info, ArgumentInfo):
            required = parameter.default is inspect.Parameter.empty
            more = "" if "list" not in str(kind) else "..."
            arguments[name.upper() if required else f"[{name.upper()}]{more}"] = filled(info.help or "")
            continue
        if info.hidden:
            continue
        flags = [info.default, *(info.param_decls or ())]  # typer keeps the first declaration apart
        spelled = [flag for flag in flags if isinstance(flag, str) and flag.startswith("-")]
        spelled = spelled or ["--" + name.replace("_", "-")]
        shown = ", ".join(f"`{flag}`" for flag in spelled) + _value(kind, info.metavar)
        options.setdefault(info.rich_help_panel or "Other", []).append(
            [shown, filled(info.help or ""), _default(parameter)]
        )
    return arguments, options


def _value(kind: Any, metavar: str | None) -> str:
    """What an option takes, as shown after its flags."""
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    if kind is bool:
        return ""
    if typing.get_origin(kind) is typing.Literal:
        return f" `{' or '.join(typing.get_args(kind))}`"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f" `{' or '.join(member.value for member in kind)}`"
    words = {int: "N", float: "X", Path: "FOLDER", str: "TEXT"}
    return f" `{metavar or words.get(kind, 'TEXT')}`"


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is None or value is False:
        return ""
    if value is inspect.Parameter.empty:
        return "required"
    return f"`{value.value if isinstance(value, enum.Enum) else value}`"


def metrics() -> str:
    """Every built-in metric, by family."""
    parts = [
        f"# Metrics\n\n{NOTE}",
        "λ are the eigenvalues of the smaller of WᵀW and WWᵀ, not divided by n; σ = √λ; W is n × m with n ≥ m. "
        "[Definitions](definitions.md) says what each number means and how it differs from other tools. "
        "`tailwise metrics` prints the same list.",
        "A value that is not defined for a spectrum is null (an empty cell), never −1 and never NaN in a file.",
        "*When*: “always”, or the option that computes it. A metric that is asked for by name "
        "(`--metrics NAME`) switches on what it needs.",
    ]
    built_in = [item for _, item in METRICS.items() if item.compute.__module__.startswith("tailwise.")]
    other_names = {ours: theirs for theirs, ours in COLUMNS.items()}
    for family in dict.fromkeys(item.family for item in built_in):
        module = inspect.getmodule(next(item for item in built_in if item.family == family).compute)
        rows = [
            [f"`{item.name}`", item.summary, item.formula, item.unit, _when(item), item.source,
             _other_name(other_names.get(item.name))]
            for item in built_in if item.family == family
        ]  # fmt: skip
        parts.append(f"## {family.replace('_', ' and ')}\n\n{inspect.getdoc(module)}")
        parts.append(_table(["name", "what it is", "formula", "unit", "when", "source", "WeightWatcher"], rows))
    parts.append("† The definition differs from WeightWatcher's on purpose: see [definitions](definitions.md).")
    return "\n\n".join(parts) + "\n"


def _when(item: Metric) -> str:
    for recipe, text in (
        (Recipe(), "always"),
        (Recipe(randomize=1), "`--randomize`"),
        (Recipe(bootstrap=1), "`--bootstrap N`"),
    ):
        if item in selected(recipe):
            return text
    return "by name"


def _other_name(column: str | None) -> str:
    return "" if column is None else f"`{column}`" + (" †" if column in DIFFERENT else "")


_STRENGTHS = {
    "theory": "theory: it follows from a derivation",
    "published": "published: it goes along with quality in publications",
    "heuristic": "heuristic: a rule of thumb",
}


def rules() -> str:
    """Every built-in rule, by family, and the table of thresholds."""
    parts = [
        f"# Rules\n\n{NOTE}",
        "`tailwise diagnose AUDIT` and `tw.diagnose(audit)` apply these rules. A rule finds something, finds "
        "nothing, or says that it was not evaluated and why, which is not the same as finding nothing. "
        "[How well they do](results.md#do-the-rules-find-what-is-wrong) was measured by fault injection.",
        "Every exponent is shown with its standard error, and with what noise of the same shape gives. Comparisons "
        "along depth stay within one role and one shape, since pooled roles reverse trends; they carry a test, "
        "corrected for being many.",
        "`--mute TW101` mutes a rule, `--mute TW2xx` a family, and `--mute 'TW103:layers\\.0\\.'` a rule for the "
        "layers whose name matches. `--thresholds FILE.toml` changes any value of the "
        "[table of thresholds](#thresholds).",
    ]
    built_in = [item for _, item in RULES.items() if item.built_in]
    for family in dict.fromkeys(item.family for item in built_in):
        module = inspect.getmodule(next(item for item in built_in if item.family == family).judge)
        # The code alone is a heading, so that `rules.md#tw101` leads to it.
        heads = [_rule(item, _audit_needs(item)) for item in built_in if item.family == family]
        parts += [f"## {family.capitalize()}\n\n{inspect.getdoc(module)}", *heads]
    parts += ["## Alarms", _ALARMS, *(_rule(item, _names(item.asks_for) or "any norm, or the loss")
                                      for _, item in ALARM_RULES.items() if item.built_in)]  # fmt: skip
    parts.append(
        "## Thresholds\n\nOf rules on audits and on runs. In a TOML file: `noise_z = 5`, one line for each that is to "
        "change; one file may serve both."
    )
    rows = [[f"`{i.name}`", f"{i.value:g}", i.unit, i.reason, ", ".join(i.rules)] for i in TABLE]
    parts.append(_table(["name", "value", "unit", "reason", "rules"], rows))
    return "\n\n".join(parts) + "\n"


_ALARMS = (
    "These rules look at the points of a running training, one after the other: see [alarms](training.md#alarms). "
    "*Needs* are "
    "metrics of a layer and numbers of the whole model that a point must have for the rule to be asked. How well they "
    "do was measured: see [evidence from training](training-evidence.md)."
)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _functions(names: Iterable[str]) -> str:
    return ", ".join(f"[`remedies.{name}`](remedies.md#{name.lower()})" for name in names) or "–"


def _audit_needs(item: AuditRule) -> str:
    estimator = f" (`alpha` from the `{item.estimator}` estimator)" if item.estimator else ""
    return _names(item.needs) + estimator if item.needs else "nothing but the rows"


def _rule(item: Rule[Any, Any], needs: str) -> str:
    used = _names(threshold.name for threshold in item.thresholds)
    rows = [
        ["severity", item.severity],
        ["needs", needs],
        ["thresholds", used or "none"],
        ["causes", "; ".join(item.causes)],
        ["remedies", "; ".join(item.remedies)],
        ["in code", _functions(item.functions)],
        ["evidence for the rule", _STRENGTHS[item.strength]],
        ["references", "; ".join(item.references)],
    ]
    sign = f"**{item.title[0].upper()}{item.title[1:]}.** {item.summary}"
    return f"### {item.code}\n\n{sign}\n\n{_table(['', ''], rows)}"


_SCOPES = {
    "audit": ("Of one audit", "tailwise plot AUDIT --chart {name} -o {name}.png"),
    "layer": ("Of one layer", "tailwise plot AUDIT --chart {name} --layer NAME -o {name}.png"),
    "several": ("Of several audits", "tailwise plot AUDIT AUDIT --chart {name} -o {name}.png"),
    "base": ("Against a base", "tailwise plot AUDIT --base AUDIT --chart {name} -o {name}.png"),
}


def charts() -> str:
    """Every built-in chart: what it shows, what is good and what is bad, and how to draw it."""
    parts = [
        f"# Charts\n\n{NOTE}",
        "`tailwise report AUDIT -o report.html` puts all of them into one page that needs no network; "
        "`tailwise plot AUDIT --chart NAME -o x.png` (or .svg, .pdf, .html, .json) draws one; "
        '`audit.plot("NAME")` gives it to a notebook as an Altair chart. `tailwise plot --list` prints the names, '
        '`--theme dark` is for dark paper. All of it needs `pip install -c constraints.txt ".[report]"`.',
        "Colours and shapes of roles are the same in every chart. Bands of α stand only where it was fitted by the "
        "`ks` estimator. A hollow point is a poor fit, which has no verdict. Small block numbers are near the data, "
        "large ones near the labels; `in` and `out` are what stands before the first block and after the last.",
        "The pictures show the example model (`examples/pycode-8m`); its base, and the second model, are noise "
        "of the same shapes. `python docs/chart_figures.py` draws them.",
    ]
    built_in = [item for _, item in CHARTS.items() if item.function.__module__.startswith("tailwise.")]
    for scope, (title, command) in _SCOPES.items():
        parts.append(f"## {title}")
        parts += [_chart(item, command.format(name=item.name)) for item in built_in if item.scope == scope]
    return "\n\n".join(parts) + "\n"


def _chart(item: Chart, command: str) -> str:
    guide = item.guidance
    lines = [f"- **Good:** {guide.good}", f"- **Bad:** {guide.bad}", *([f"- {guide.note}"] if guide.note else [])]
    needs = ", ".join(f"`{name}`" for name in item.needs)
    option = remedy(item.needs) if item.needs else ""
    from_option = f" (`{option.partition('MODEL ')[2]}" if "--randomize" in option else ""
    wants = f"Needs {needs}{from_option.rstrip('`') + '`)' if from_option else ''}.\n\n" if needs else ""
    return (
        f"### {item.name}\n\n**{item.title}.** {item.summary} {guide.reading}\n\n" + "\n".join(lines)
        + f"\n\n{wants}```bash\n{command}\n```\n\n![{item.title}](images/charts/{item.name}.svg)"
    )  # fmt: skip


#: Beside the base names: what their suffixes make of them.
_VARIANTS = ("fp8_e4m3-tensor", "fp8_e4m3-cast", "fp8_e5m2-cast", "int8-asym", "int8-tensor", "int8-g128", "int4-asym",
             "int4-g32", "int4-channel", "mxfp6-e3m2", "nf4-g128")  # fmt: skip
_SIDE = 4096


def formats() -> str:
    """Every number format, and the rules of their scales."""
    head = ["name", "what it is", "bits of an entry", "one scale per", "bits of a scale", "bits per weight", "source"]
    rules_of_scales = {type(item.rule): item.rule for item in map(parse_format, FORMATS) if _scaled(item)}
    rules_of_scales |= {type(item.rule): item.rule for item in map(parse_format, _VARIANTS) if _scaled(item)}
    return "\n\n".join(
        [
            "Names as `tailwise precision --precisions` and `tailwise.number_formats.formats.parse_format` take "
            "them. [Below](#how-each-format-rounds) is how each rounds and what it is compared with. Bits "
            f"per weight are of a {_SIDE} × {_SIDE} matrix, with scales and zero points, without headers.",
            "## Base names",
            _table(head, [[f"`{name}`", text, *_format_cells(parse_format(name))] for name, text in FORMATS.items()]),
            "Types of llama.cpp are stored in whole blocks. Where those of `q2_k` … `q6_k`, `iq4_nl` and `iq4_xs` do "
            "not divide the inputs of a matrix, the type that llama.cpp takes stands in: "
            + ", ".join(f"{item.otherwise.name} for `{name}`" for name, item in _stood_in_for())
            + "; and fp16 where 32 does not divide them either. ggml rounds these types (`pip install "
            "'tailwise[ggml]'`), and with `--operator imatrix` q4_0, q4_1, q5_0 and q5_1 too.",
            "## Suffixes",
            "Joined to the base name with `-`, in any order. Parentheses above say which a name takes: `sym` and "
            "`asym` (integers; `sym` is the default), `tensor`, `channel` (a row) or `g<N>` (N entries of a row), and "
            "`cast` (fp8 without a scale). MX formats take their element type. Some of what they give:",
            _table([head[0], *head[2:]], [[f"`{name}`", *_format_cells(parse_format(name))] for name in _VARIANTS]),
            "## Scales",
            "From the entries of a group to the step that one unit of an element is worth:",
            *(f"- **{name}** (`{', '.join(_users(name, FORMATS) or _users(name, _VARIANTS))}`): {_first(kind)}"
              for kind in rules_of_scales for name in [kind.__name__]),
        ]
    )  # fmt: skip


def _stood_in_for() -> list[tuple[str, GgmlFormat]]:
    """Types in blocks of more than 32."""
    found = [(name, parse_format(name)) for name in FORMATS]
    return [(name, item) for name, item in found if isinstance(item, GgmlFormat) and item.block > BLOCK]


def _scaled(item: NumberFormat) -> typing.TypeGuard[ScaledFormat]:
    return isinstance(item, ScaledFormat)


def _users(rule: str, names: Iterable[str]) -> list[str]:
    found = [(name, parse_format(name)) for name in names]
    return [name for name, item in found if _scaled(item) and type(item.rule).__name__ == rule]


def _first(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


def _format_cells(item: NumberFormat) -> list[str]:
    """Bits of an entry, who shares a scale, its bits, bits per weight, source."""
    shared, bits = "–", "–"
    if _scaled(item):
        shared = {"channel": "row", "tensor": "tensor"}.get(str(item.shared), f"{item.shared} of a row")
        bits = f"{item.rule.bits}" + (f", and {item.rule.tensor_bits} of the tensor" if item.rule.tensor_bits else "")
    weight = item.bits_per_weight(_SIDE, _SIDE)
    return [f"{item.element_bits:g}", shared, bits, f"{weight:.6g}", item.source]


def allocators() -> str:
    """Every built-in allocator, and the operators of pruning plans."""
    found = [item for _, item in ALLOCATORS.items() if item.choose.__module__.startswith("tailwise.")]
    parts = [
        "`tailwise plan prune --allocator NAME` and `Request(allocator=NAME)` take these.",
        "*Takes* are its settings: the options `--mapping`, `--tau`, `--beta`, and for those that no option sets, "
        "fields of `Settings` in Python.",
        _table(
            ["name", "what it does", "takes", "fits α", "source"],
            [[f"`{item.name}`", item.summary, ", ".join(f"`{name}`" for name in item.takes) or "–",
              "yes" if item.needs_alpha else "no", item.source] for item in found],
        ),
    ]  # fmt: skip
    parts += [f"### {item.name}\n\n{_prose(inspect.getdoc(item.choose) or '')}" for item in found]
    parts += [
        "### Operators of pruning",
        "What removes parameters, and which way α points for it:",
        _table(
            ["name", "what goes", "more where α is", "source of the direction"],
            [[f"`{item.name}`", item.summary, "high" if item.direction > 0 else "low", item.of_direction]
             for item in operators_that("prune").values()],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def roles() -> str:
    """Every role."""
    return "\n\n".join(
        [
            "Each tensor gets a role from its name, by one table that covers the names of transformers, diffusers, "
            "torchvision, timm, GGUF, MLX, Megatron, LitGPT, torchtune and the original releases of Llama, Mixtral, "
            "Whisper, CLIP, Stable Diffusion and Flux. The table stands in the order in which layers are listed "
            "within a block. `tailwise audit --roles A,B` takes only these.",
            _table(["role", "what it is"], [[f"`{name}`", text] for name, text in ROLES.items()]),
        ]
    )


def zoo() -> str:
    """The table of the zoo, as its tests have it."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    try:
        from zoo.page import summary, table
    finally:
        sys.path.pop(0)
    return f"{summary()}.\n\n{table()}"


def families() -> str:
    """What compression makes of every family, as the tests have it."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    try:
        from families.table import reasons, table
    finally:
        sys.path.pop(0)
    return "\n\n".join(
        [
            "Tiny models of transformers, each planned, applied, and loaded again by plain transformers (by "
            "`tailwise.load_pruned` where a config cannot say the sizes). A ✓ says that what was loaded is what a "
            "reference of a few lines makes of the model: masks and rounded values bit for bit; of GPTQ the codes, all "
            "but 1 in 10,000, and the error of the outputs; factors (of stacked experts their products) against the "
            "best approximation of their rank; "
            "heads, neurons and blocks that went against the whole model without them; experts that went against the "
            "whole model whose routers may not choose them (–: it has none); and that what was achieved is "
            "what the written files hold. The tests run each family with two operators; "
            "`PYTHONPATH=src:tests python tests/families/table.py` runs the whole product and keeps this table.",
            table(),
            "### What is refused\n\nBefore any work, with these words:",
            reasons(),
        ]
    )


def api() -> str:
    """The public names with their signatures and docstrings."""
    parts = [
        f"# Python API\n\n{NOTE}",
        "`import tailwise as tw` loads neither torch nor numpy; a name is loaded when it is first used. "
        "These are the names in `tw.`; what they take and give beside them is in [named modules](#modules). "
        "`tailwise audit` is `tw.audit`, and `tailwise show` is `tw.Audit.load`.",
    ]
    functions = [name for name in tailwise.__all__ if inspect.isfunction(inspect.unwrap(getattr(tailwise, name)))]
    classes = [name for name in tailwise.__all__ if inspect.isclass(getattr(tailwise, name))]
    errors = [name for name in classes if issubclass(getattr(tailwise, name), Exception)]
    for title, names in (
        ("Functions", functions),
        ("Classes", [name for name in classes if name not in errors]),
        ("Errors", errors),
    ):
        parts.append(f"## {title}")
        parts += [_described(name, getattr(tailwise, name)) for name in names]
    described = inspect.getdoc(type(tailwise.METRICS))
    parts.append(
        "## Values\n\n### METRICS\n\nThe registry of metrics: `METRICS[name]` is a `Metric` with `name`, `family`, "
        f"`formula`, `unit`, `source` and `summary`.\n\n{described}"
    )
    parts += ["## Modules\n\nEverything else that functions take and give, each in one module; "
              "`tw.plans.Plan` and `from tailwise.plans import Plan` are the same."]  # fmt: skip
    told = set(tailwise.__all__)
    for name in MODULES:
        parts += _module(importlib.import_module(f"tailwise.{name}"), told)
    return "\n\n".join(parts) + "\n"


#: Those with names of their own, in the order of the road; a name is described where it comes first.
MODULES = ("auditing", "diagnosing", "comparing", "gates", "plans", "precision", "scoring", "runs", "extend")


def _module(module: types.ModuleType, told: set[str]) -> list[str]:
    """A module: what it is, and its names that are not described before."""
    parts = [f"## {module.__name__}\n\n{inspect.getdoc(module)}"]
    before = [f"`{name}`" for name in module.__all__ if name in told]
    if before:
        parts.append(f"Described above: {', '.join(before)}.")
    for name in module.__all__:
        if name not in told:
            told.add(name)
            item = getattr(module, name)
            parts.append(_described(name, item) if _is_made(item) else _value_of(name, item))
    return parts


def _is_made(item: Any) -> bool:
    """Whether it is a class or a function, and no alias of a type."""
    return inspect.isclass(item) or inspect.isfunction(inspect.unwrap(item))


def _value_of(name: str, item: Any) -> str:
    """A registry, a table or a kind of type."""
    if isinstance(item, Registry):
        return f"### {name}\n\nEvery {item.kind}, by its name: {', '.join(f'`{one}`' for one in item)}."
    if isinstance(item, (tuple, dict)):
        return f"### {name}\n\n{', '.join(f'`{one}`' for one in item)}."
    kind = re.sub(r"[a-z_.]+[.](?=[A-Z])", "", str(item)).replace("typing.", "")
    return f"### {name}\n\n`{name} = {kind}`"


def _described(name: str, item: Any) -> str:
    signature = _fields(item) if dataclasses.is_dataclass(item) else _signature(name, item)
    if inspect.isabstract(item):
        signature = f"class {name}"
    text = [f"### {name}", f"```python\n{signature}\n```", _prose(inspect.getdoc(item) or "")]
    if inspect.isclass(item):
        text += [_member(item, member) for member in _members(item)]
    return "\n\n".join(text)


def _fields(item: Any) -> str:
    """A dataclass as its source has it, with the comments that say what each field is; inherited ones first."""
    fields = {field.name for field in dataclasses.fields(item)}
    kept: dict[str, str] = {}
    for base in reversed(item.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        for line in inspect.getsource(base).splitlines():
            name = line[4:].partition(":")[0]
            if re.match(r" {4}\w+: ", line) and name in fields:
                kept[name] = line[4:]
    return f"class {item.__name__}:\n" + "\n".join(f"    {line}" for line in kept.values())


def _members(item: type) -> list[str]:
    """Each once, as the nearest class has it."""
    found = [
        name
        for base in item.__mro__
        if base.__module__.startswith("tailwise") and not issubclass(item, Exception)
        for name, value in vars(base).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, (property, staticmethod, classmethod)) or _is_cached(value))
        and inspect.getdoc(value)
    ]
    return list(dict.fromkeys(found))


def _is_cached(value: object) -> bool:
    return type(value).__name__ == "KeptProperty"


def _member(item: type, name: str) -> str:
    value = inspect.getattr_static(item, name)
    if isinstance(value, property) or _is_cached(value):
        shown = f".{name}"
    else:
        shown = _signature(f".{name}", getattr(item, name))
    return f"- `{shown}`: {_prose(inspect.getdoc(value) or '')}".replace("\n\n", "\n\n  ")


def _signature(name: str, item: Any) -> str:
    try:
        parameters = list(inspect.signature(item).parameters.values())
    except ValueError:
        return name
    if parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    shown = list(_spelled(parameters))
    returned = getattr(item, "__annotations__", {}).get("return") if inspect.isfunction(item) else None
    end = f") -> {returned}" if returned else ")"
    line = f"{name}({', '.join(shown)}{end}"
    if len(line) <= 100 or name.startswith("."):
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in shown) + end


def _spelled(parameters: Iterable[inspect.Parameter]) -> Iterable[str]:
    starred = False
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        prefix = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        starred = starred or prefix == "*"
        kind = parameter.annotation
        text = prefix + parameter.name + ("" if kind is inspect.Parameter.empty else f": {_annotation(kind)}")
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {parameter.default!r}"
        yield text


def _annotation(kind: Any) -> str:
    return kind if isinstance(kind, str) else str(getattr(kind, "__name__", kind))


def _prose(text: str) -> str:
    """A docstring as Markdown: NumPy-style parameter lists become lists."""
    text = re.sub(r"\nParameters\n-+\n", "\nParameters:\n\n", text)
    text = re.sub(r"(?m)^([a-z_, ]+)\n    (.+(?:\n    .+)*)", _as_item, text)
    text = re.sub(r"(?m)^>>> .*(?:\n(?!\n).+)*(?:\n\n>>> .*(?:\n(?!\n).+)*)*", r"```pycon\n\g<0>\n```", text)
    if "├" in text:
        text = re.sub(r"(?m)^", "    ", text)
    return text


def _as_item(match: re.Match[str]) -> str:
    return f"- `{match[1]}`: " + " ".join(line.strip() for line in match[2].splitlines())


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
        typer.echo(f"written: docs/{name}")
