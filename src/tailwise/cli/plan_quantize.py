"""`tailwise plan quantize`."""

from __future__ import annotations

import math
import re
from typing import Annotated

import typer

from tailwise.cli.options import Device, Json, Rows, Workers, comma_list
from tailwise.cli.plan_shared import (
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
    audit_of,
    deliver,
    saying,
    target_of,
    text_of,
)
from tailwise.cli.solver import solver_to_stderr
from tailwise.errors import UsageError, unknown_name

_HOW = "How to spend the bits"
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b?|b)?\s*", re.IGNORECASE)


def quantize(
    model: Model,
    bits: Annotated[
        float | None, typer.Option(help="Mean bits per weight of the chosen tensors, scales counted, e.g. 4.5.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--bytes", metavar="SIZE", help="Of the whole model, in place of --bits: 900MB, 3.5GiB."),
    ] = None,
    rise: Annotated[
        str | None,
        typer.Option(
            "--perplexity-rise", metavar="X%", help="The fewest bits with which perplexity rises by no more, e.g. 2%."
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            rich_help_panel=_HOW,
            help="To choose from: int2, int3, int4, int8 (-asym, -g<N>, -channel), fp8_e4m3, mxfp4, mxfp6, mxfp8, "
            "nvfp4, nf4, q4_0, q4_1, q5_0, q5_1, q8_0, bf16.",
        ),
    ] = "mxfp4,mxfp8,bf16",
    allocator: Annotated[
        str,
        typer.Option(
            help="auto (tries the others on --calibration), uniform, depth, alpha, alphaq, distortion (with --study), "
            "outputs, sensitivity.",
            rich_help_panel=_HOW,
        ),
    ] = "auto",
    operator: Annotated[
        str, typer.Option(help="rtn (to nearest), or gptq, which needs calibration text.", rich_help_panel=_HOW)
    ] = "rtn",
    gamma: Annotated[
        float | None,
        typer.Option(help="Of alphaq: power of α, 1 by default; 0 is the control.", rich_help_panel=_HOW),
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Of alpha: bits in [1 − τ, 1 + τ] of the budget.", rich_help_panel=_HOW)
    ] = None,
    mxfp4_ratio: Annotated[
        float | None,
        typer.Option(
            help="Of alpha, in place of --bits: share of tensors, highest α first, in the lowest format.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    bf16_ratio: Annotated[
        float | None,
        typer.Option(help="Of alpha: share of tensors, lowest α first, in the highest format.", rich_help_panel=_HOW),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of distortion: x.json of `tailwise precision`.", rich_help_panel=_HOW),
    ] = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="Of distortion: errors relative to the tensor.", rich_help_panel=_HOW)
    ] = False,
    act_order: Annotated[
        bool, typer.Option("--act-order", help="Of gptq: inputs with the most energy first.", rich_help_panel=_HOW)
    ] = False,
    per_expert: Annotated[
        bool,
        typer.Option("--per-expert", help="Let experts of a block differ; most servers cannot.", rich_help_panel=_HOW),
    ] = False,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            help="Of a model that is quantized already: plan from its decoded values.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    estimator: Annotated[str | None, typer.Option(help="Of α; top_outside by default.", rich_help_panel=_HOW)] = None,
    calibration: Calibration = None,
    budget: TimeBudget = "5m",
    samples: Samples = 32,
    window: Window = 512,
    seed: Seed = 0,
    roles: Roles = None,
    layers: Layers = None,
    also: Also = None,
    device: Device = "cpu",
    workers: Workers = None,
    executor: Engine = "local",
    dry_run: DryRun = False,
    output: PlanFile = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Plan a quantization: a number format for every tensor, held to a budget, with the reason for each.

    With --calibration, every known way is tried on the model and the best is kept; without it the audit is all that
    is read. What servers fuse gets one format: query, key and value, gate and up, the experts of a block. Embeddings,
    head, norms and routers stay as they are unless --also names them.
    """
    from tailwise.compression.choosing.formats import ASSIGNERS
    from tailwise.compression.making.request import QuantizeRequest
    from tailwise.compression.plans.candidates import Choice
    from tailwise.compression.trying.clock import Clock
    from tailwise.compression.trying.run import AUTO, planned, seconds_of
    from tailwise.precision.study import PrecisionStudy

    seconds = seconds_of(budget)
    if allocator != AUTO and allocator not in ASSIGNERS:
        raise unknown_name("allocator", allocator, [AUTO, *(name for name, _ in ASSIGNERS.items())])
    given = {"gamma": gamma, "tau": tau, "mxfp4_ratio": mxfp4_ratio, "bf16_ratio": bf16_ratio}
    request = QuantizeRequest(
        bits=bits,
        bytes=None if size is None else bytes_of(size),
        rise=None if rise is None else fraction_of(rise),
        formats=comma_list(formats),
        allocator="uniform" if allocator == AUTO else allocator,
        operator=operator,
        choice=Choice(comma_list(roles), layers, comma_list(also)),
        per_expert=per_expert,
        act_order=act_order,
        estimator=estimator,
        study=None if study is None else PrecisionStudy.load(study),
        relative=relative,
        dequantize=dequantize,
        settings={name: value for name, value in given.items() if value is not None},
    )
    text = text_of(calibration, samples, window, seed, device, executor)
    target = None if dry_run else target_of(output, as_json)
    audit = audit_of(model, device, workers)
    with solver_to_stderr(), saying() as say:
        plan = planned(audit, request, allocator=allocator, text=text, clock=Clock(seconds), say=say)
    deliver(plan, target, as_json, rows)


def fraction_of(text: str) -> float:
    """`2%` or `0.02` → 0.02. `UsageError` for what is no share above 0."""
    try:
        value = float(text.strip().removesuffix("%")) / (100.0 if "%" in text else 1.0)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise UsageError(f"{text!r} is no rise of perplexity", fix="write 2% or 0.02")
    return value


def bytes_of(text: str) -> int:
    """`900MB` → 900,000,000; `3.5GiB` → 3.5·2³⁰; a bare number is bytes. `UsageError` otherwise."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no size", fix="write 900MB, 3.5GB or 3.5GiB")
    unit = (found[2] or "").lower()
    power = "kmgt".index(unit[0]) + 1 if unit[:1] in ("k", "m", "g", "t") else 0
    return round(float(found[1]) * (1024.0 if "i" in unit else 1000.0) ** power)
