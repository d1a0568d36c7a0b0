"""`tailwise plan prune|quantize`: one table of options, one way through."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.cli.audit_inputs import is_audit, tell_where
from tailwise.cli.plan_shared import (
    TRY,
    Also,
    Calibration,
    DryRun,
    Engine,
    Layers,
    Model,
    PlanFile,
    Roles,
    Samples,
    Seed,
    TimeBudget,
    Window,
    deliver,
    number,
    saying,
    target_of,
    text_of,
    windows_of,
)
from tailwise.cli.plan_watched import KEPT_ESTIMATOR, Source, planned_from
from tailwise.cli.shared_options import (
    Begin,
    Bos,
    Device,
    Json,
    Option,
    Rows,
    Workers,
    comma_list,
    command,
    solver_to_stderr,
)
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.storage import is_url

if TYPE_CHECKING:
    from tailwise.compression.making.request import QuantizeRequest, Request

SPREAD, SPEND, WATCHED = "How to spread it", "How to spend the bits", "From a run that was watched"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?:@.*)?")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b?|b)?\s*", re.IGNORECASE)


class Objective(StrEnum):
    """What a search makes small."""

    kl = "kl"
    loss = "loss"


class Mapping3(StrEnum):
    """Whose metric decides."""

    block = "block"
    matrix = "matrix"
    mixed = "mixed"


_MODEL = Option("model", Model)
_OF_BOTH = (
    Option("calibration", Calibration, None),
    Option("budget", TimeBudget, "5m"),
    Option("samples", Samples, 32),
    Option("window", Window, 512),
    Option("seed", Seed, 0),
    Option("bos", Bos, Begin.auto, panel=TRY),
    Option(
        "objective",
        Objective | None,
        None,
        "What auto makes small: kl (the default), the divergence from the dense model's predictions, or loss. "
        "Images: loss.",
        panel=TRY,
    ),
    Option("roles", Roles, None),
    Option("layers", Layers, None),
    Option("also", Also, None),
    Option(
        "history",
        str | None,
        None,
        "Plan from what a monitor measured: a store, as of --store. Only the model's headers are read.",
        panel=WATCHED,
        metavar="WHERE",
    ),
    Option("run", str | None, None, "Of the store: the run, where it has several.", panel=WATCHED, metavar="NAME"),
    Option("device", Device, "cpu"),
    Option("workers", Workers, None),
    Option("executor", Engine, "local"),
    Option("dry_run", DryRun, False),
    Option("output", PlanFile, None),
    Option("as_json", Json, False),
    Option("rows", Rows, 100),
)
OF_PRUNE = (
    _MODEL,
    Option("sparsity", str | None, None, "Fraction of the chosen tensors' parameters that goes, e.g. 0.7 or 70%.",
           metavar="FRACTION"),
    Option("allocator", str, "auto",
           "auto (tries the others on --calibration), {allocators}.", panel=SPREAD),
    Option("operator", str, "magnitude", "{pruners}.", panel=SPREAD),
    Option("pattern", str, "unstructured", "unstructured, 2:4, 4:8 (N kept of M), or N:8 for a mix.", panel=SPREAD),
    Option("mapping", Mapping3 | None, None, "Of {allocators_with_mapping}: whose metric decides.", panel=SPREAD,
           setting=True),
    Option("tau", float | None, None,
           "Shares lie in [1 − τ, 1 + τ] before they are scaled to the budget and cut at 0.99; 0.3 by default.",
           panel=SPREAD, setting=True),
    Option("beta", float | None, None, "Of depth: step from block to block.", panel=SPREAD, setting=True),
    Option("weights", str | None, None,
           "Of blend, e.g. alpha=1,depth=-0.5; searched on --calibration where not given.", panel=SPREAD,
           metavar="A=X,B=Y", setting=True),
    Option("reverse", bool, False, "Of {allocators_with_reverse}: more where they take less.", ("--reverse",),
           SPREAD, setting=True),
    Option("estimator", str | None, None, "Of α; by default peak for language models, mid for vision.", panel=SPREAD),
    Option("no_clamp", bool, False, "As published: amounts above 1 stay as they are.", ("--no-clamp",), SPREAD),
    *_OF_BOTH,
)  # fmt: skip
OF_QUANTIZE = (
    _MODEL,
    Option("bits", float | None, None, "Mean bits per weight of the chosen tensors, scales counted, e.g. 4.5."),
    Option("size", str | None, None, "Of the whole model, in place of --bits: 900MB, 3.5GiB.", ("--bytes",),
           metavar="SIZE"),
    Option("rise", str | None, None, "The fewest bits with which perplexity rises by no more, e.g. 2%.",
           ("--perplexity-rise",), metavar="X%"),
    Option("formats", str, "mxfp4,mxfp8,bf16",
           "To choose from: {formats}; integers also with -asym, -g<N>, -channel.", panel=SPEND, metavar="A,B"),
    Option("allocator", str, "auto",
           "auto (tries the others on --calibration), {assigners}; distortion with --study.", panel=SPEND),
    Option("operator", str, "rtn", "{quantizers}; {looking_quantizers} with calibration text.", panel=SPEND),
    Option("gamma", float | None, None, "Of alphaq: power of α, 1 by default; 0 is the control.", panel=SPEND,
           setting=True),
    Option("tau", float | None, None, "Of alpha: bits in [1 − τ, 1 + τ] of the budget.", panel=SPEND, setting=True),
    Option("mxfp4_ratio", float | None, None,
           "Of alpha, in place of --bits: share of tensors, highest α first, in the lowest format.", panel=SPEND,
           setting=True),
    Option("bf16_ratio", float | None, None,
           "Of alpha: share of tensors, lowest α first, in the highest format.", panel=SPEND, setting=True),
    Option("study", str | None, None, "Of distortion: x.json of `tailwise precision`.", panel=SPEND, metavar="FILE"),
    Option("relative", bool, False, "Of distortion: errors relative to the tensor.", ("--relative",), SPEND),
    Option("act_order", bool, False, "Of gptq: inputs with the most energy first.", ("--act-order",), SPEND),
    Option("per_expert", bool, False, "Let experts of a block differ; most servers cannot.", ("--per-expert",), SPEND),
    Option("dequantize", bool, False, "Of a model that is quantized already: plan from its decoded values.",
           ("--dequantize",), SPEND),
    Option("estimator", str | None, None, "Of α; top_outside by default.", panel=SPEND),
    *_OF_BOTH,
)  # fmt: skip


def _prune(**given: Any) -> None:
    from tailwise.compression.choosing.amounts import ALLOCATORS

    _made(given, dict(ALLOCATORS.items()), _to_prune)


def _quantize(**given: Any) -> None:
    from tailwise.compression.choosing.bit_formats import ASSIGNERS

    _made(given, dict(ASSIGNERS.items()), _to_quantize)


def _made(given: Mapping[str, Any], methods: Mapping[str, Any], asked: Any) -> None:
    """Make a plan and deliver it. Everything that can be wrong with the options is told before a model is read."""
    _check_names(given)  # before torch is read, which takes seconds
    from tailwise.compression.trying.clock import Clock
    from tailwise.compression.trying.planned import AUTO, planned, seconds_of

    seconds, allocator = seconds_of(given["budget"]), given["allocator"]
    if allocator != AUTO and allocator not in methods:
        raise unknown_name("allocator", allocator, [AUTO, *methods])
    given = {**given, "estimator": _estimator(given, methods)}
    request: Request | QuantizeRequest = asked(given, "uniform" if allocator == AUTO else allocator)
    target = None if given["dry_run"] else target_of(given["output"], given["as_json"])
    text = text_of(given["calibration"], windows_of(given), given["device"], given["executor"])
    text = text and replace(
        text, objective=given["objective"].value if given["objective"] and allocator == AUTO else None
    )
    source = Source(given["model"], given["device"], given["workers"], given["history"], given["run"])
    _check_early(source, request)
    audit, finish = planned_from(source)
    if text is not None:
        tell_where(source.model, audit)
    with solver_to_stderr(), saying() as say:
        plan = planned(audit, request, allocator=allocator, text=text, clock=Clock(seconds), say=say)
    deliver(finish(plan), target, given["as_json"], given["rows"])


def _check_names(given: Mapping[str, Any]) -> None:
    """Formats that there are none of, and a model that is not there, are told at once."""
    from tailwise.number_formats.formats import parse_format

    for name in comma_list(given.get("formats")):
        parse_format(name)
    model = str(given["model"])
    if is_url(model) or _HUB_ID.fullmatch(model) or Path(model).expanduser().exists():
        return
    from tailwise.checkpoints.open import open_checkpoint

    with open_checkpoint(model):  # whose error it is
        pass


def _check_early(source: Source, request: Request | QuantizeRequest) -> None:
    """A budget that no choice of formats meets is told before the model is audited."""
    from tailwise.compression.making.request import QuantizeRequest

    if source.history is None and isinstance(request, QuantizeRequest) and not is_audit(source.model):
        from tailwise.compression.trying.early import check_reach_early

        check_reach_early(source.model, request)


def _estimator(given: Mapping[str, Any], methods: Mapping[str, Any]) -> str | None:
    """Of a run that was watched, α is as its monitor fitted it: there are no spectra to fit anew."""
    estimator: str | None = given["estimator"]
    if given["history"] is None:
        if given["run"] is not None:
            raise UsageError("--run says which run of a store", fix="give the store with --history")
        return estimator
    if estimator not in (None, KEPT_ESTIMATOR):
        fix = "leave --estimator out, or plan from an audit"
        raise UsageError(f"{estimator} needs spectra, and a history has none", fix=fix)
    method = methods.get(given["allocator"])  # auto tries all
    return KEPT_ESTIMATOR if method is not None and method.needs_alpha else estimator


def _told(given: Mapping[str, Any], rows: tuple[Option, ...]) -> dict[str, Any]:
    """The settings that were given, by name."""
    settings = {row.name: given[row.name] for row in rows if row.setting}
    return {name: value for name, value in settings.items() if value is not None and value is not False}


def _to_prune(given: Mapping[str, Any], allocator: str) -> Request:
    from tailwise.compression.making.request import Request
    from tailwise.compression.plans.candidates import TensorChoice

    told = _told(given, OF_PRUNE)
    told |= {"mapping": told["mapping"].value} if "mapping" in told else {}
    told |= {"weights": _weights(told["weights"])} if "weights" in told else {}
    return Request(
        sparsity=sparsity_of(given["sparsity"]),
        allocator=allocator,
        operator=given["operator"],
        pattern=given["pattern"],
        choice=TensorChoice(comma_list(given["roles"]), given["layers"], comma_list(given["also"])),
        clamp=not given["no_clamp"],
        estimator=given["estimator"],
        settings=told,
    )


def _to_quantize(given: Mapping[str, Any], allocator: str) -> QuantizeRequest:
    from tailwise.audits.precision.study import PrecisionStudy
    from tailwise.compression.making.request import QuantizeRequest
    from tailwise.compression.plans.candidates import TensorChoice

    size, rise, study = given["size"], given["rise"], given["study"]
    return QuantizeRequest(
        bits=given["bits"],
        bytes=None if size is None else bytes_of(size),
        rise=None if rise is None else fraction_of(rise),
        formats=comma_list(given["formats"]),
        allocator=allocator,
        operator=given["operator"],
        choice=TensorChoice(comma_list(given["roles"]), given["layers"], comma_list(given["also"])),
        per_expert=given["per_expert"],
        act_order=given["act_order"],
        estimator=given["estimator"],
        study=None if study is None else PrecisionStudy.load(study),
        relative=given["relative"],
        dequantize=given["dequantize"],
        settings=_told(given, OF_QUANTIZE),
    )


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for item in comma_list(text):
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"{item!r} is no weight", where="--weights", fix="write alpha=1,depth=-0.5")
        weights[name.strip()] = number(value, "--weights")
    return weights


def sparsity_of(text: str | None) -> float | None:
    """`70%` or `0.7` → 0.7. `UsageError` for what is no number; its range is checked with the request."""
    return None if text is None else fraction_of(text, "sparsity", "write 0.7 or 70%", least=-math.inf)


def fraction_of(
    text: str, what: str = "rise of perplexity", fix: str = "write 2% or 0.02", *, least: float = 0.0
) -> float:
    """`2%` or `0.02` → 0.02. `UsageError` for what is no number above `least`."""
    try:
        value = float(text.strip().removesuffix("%")) / (100.0 if "%" in text else 1.0)
    except ValueError:
        value = math.nan
    if not least < value < math.inf:
        raise UsageError(f"{text!r} is no {what}", fix=fix)
    return value


def bytes_of(text: str) -> int:
    """`900MB` → 900,000,000; `3.5GiB` → 3.5·2³⁰; a bare number is bytes. `UsageError` otherwise."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no size", fix="write 900MB, 3.5GB or 3.5GiB")
    unit = (match[2] or "").lower()
    power = "kmgt".index(unit[0]) + 1 if unit[:1] in ("k", "m", "g", "t") else 0
    return round(float(match[1]) * (1024.0 if "i" in unit else 1000.0) ** power)


prune = command(
    _prune,
    OF_PRUNE,
    "prune",
    """Plan a pruning: an amount for every tensor, held to a budget, with the reason for each.

    With --calibration, every known way is tried on the model and the best is kept; without it the audit is all that
    is read. Embeddings, head, norms and routers stay as they are unless --also names them.
    """,
)
quantize = command(
    _quantize,
    OF_QUANTIZE,
    "quantize",
    """Plan a quantization: a number format for every tensor, held to a budget, with the reason for each.

    With --calibration, every known way is tried on the model and the best is kept; without it the audit is all that
    is read. What servers fuse gets one format: query, key and value, gate and up, the experts of a block. Embeddings,
    head, norms and routers stay as they are unless --also names them.
    """,
)
