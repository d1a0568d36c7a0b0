"""`tailwise compare A B`."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.compared import HOW, TEXTS, Fdr, Metrics, Randomize, put_out
from tailwise.cli.arguments import Device, Json, Rows, Workers, comma_list
from tailwise.core.errors import UsageError
from tailwise.core.storage import exists, is_url, joined

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.judging.compare.comparison import Comparison

_OUT = "Output"


def compare(
    models: Annotated[
        list[str], typer.Argument(help="Audits or models; the first is the base unless --base is given.")
    ],
    base: Annotated[
        str | None, typer.Option(metavar="AUDIT", help="What the others are held against.", rich_help_panel=HOW)
    ] = None,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Also read the checkpoints and measure W − W₀.", rich_help_panel=HOW),
    ] = False,
    directions: Annotated[
        int, typer.Option(min=1, help="Leading singular directions compared by --weights.", rich_help_panel=HOW)
    ] = 16,
    fdr: Fdr = 0.05,
    metrics: Metrics = None,
    randomize: Randomize = False,
    device: Device = "cpu",
    workers: Workers = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="x.json, x.csv or x.md; x.audit for W − W₀. May be repeated.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Say what changed between models: per layer with significance, per role, per model, and in structure.

    A model that is no audit is audited first, with the recipe of the first audit given.
    """
    from tailwise.judging.compare.compare_audits import compare as compare_audits

    outputs = list(output or ())
    first, others = _sides(models, base)
    _check_outputs(outputs, weights, len(others))
    audits = read_all([first, *others], randomize=randomize, device=device, workers=workers)
    found: list[Comparison] = []
    for after in audits[1:]:
        one = compare_audits(audits[0], after, level=fdr, metrics=comma_list(metrics) or None)
        if weights:
            one = _with_weights(one, audits[0], after, (directions, device, workers), outputs)
        found.append(one)
    put_out(found, outputs, as_json=as_json, rows=rows)


def _sides(models: list[str], base: str | None) -> tuple[str, list[str]]:
    first = models[0] if base is None else base
    others = models[1:] if base is None else [model for model in models if model != base]
    if not others:
        raise UsageError("there is nothing to compare with", fix="give two audits: tailwise compare BASE OTHER")
    return first, others


def _check_outputs(outputs: list[str], weights: bool, count: int) -> None:
    for path in outputs:
        check_text_target(path, (*TEXTS, ".audit"))
        if path.endswith(".audit") and not weights:
            raise UsageError("an audit of W − W₀ takes the weights", where=path, fix="add --weights")
        if path.endswith(".audit") and count > 1:
            raise UsageError("several comparisons do not go into one audit", where=path, fix="compare two models")


def _with_weights(
    found: Comparison, before: Audit, after: Audit, how: tuple[int, str, int | None], outputs: list[str]
) -> Comparison:
    from tailwise.audits.difference import DifferenceOptions, difference

    result = difference(before, after, comparison=found, options=DifferenceOptions(*how))
    for path in outputs:
        if path.endswith(".audit"):
            result.audit.save(path)
    return result.comparison


def read_all(models: list[str], *, randomize: bool, device: str, workers: int | None) -> list[Audit]:
    """Audits from files; of models, made now with the recipe of the first audit among them."""
    from tailwise.audits.audit import Audit

    saved = {model: Audit.load(model) for model in models if is_audit(model)}
    like = next(iter(saved.values()), None)
    settings = _settings_of(like) | {"device": device, "workers": workers}
    if randomize:
        settings["randomize"] = settings.get("randomize") or 1
    return [saved[model] if model in saved else _audited(model, settings) for model in models]


def is_audit(model: str) -> bool:
    """Whether a path names an audit: by its ending, or by what lies there."""
    if is_url(model):
        # Asking a web server for what may be beside a file would fetch pages.
        beside = str(joined(model, "provenance.json"))
        return model.endswith(".audit") or (not model.startswith("http") and exists(beside))
    path = Path(model)
    if model.endswith(".audit") or (path / "provenance.json").is_file():
        return True
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "provenance.json" in archive.namelist()


def _settings_of(audit: Audit | None) -> dict[str, Any]:
    if audit is None:
        return {}
    from dataclasses import fields

    from tailwise.core.recipe import Recipe

    facts, known = audit.provenance, {item.name for item in fields(Recipe)}
    settings = {key: value for key, value in facts.recipe.items() if key in known}
    settings["metrics"] = tuple(settings.get("metrics", ()))
    selection = {"layers": facts.selection.get("layers"), "roles": tuple(facts.selection.get("roles") or ())}
    return settings | selection


def _audited(model: str, settings: dict[str, Any]) -> Audit:
    from tailwise.audits.run import audit
    from tailwise.cli.progress import progress_bar

    with progress_bar() as show:
        return audit(model, progress=show, **settings)


def check_text_target(path: str, suffixes: tuple[str, ...]) -> None:
    """Fail before the work where `path` has another suffix or could not be written."""
    from tailwise.report.output_files import check_target

    if Path(path).suffix not in suffixes:
        raise UsageError(f"the suffix {Path(path).suffix!r} is not known", where=path, fix=f"use {', '.join(suffixes)}")
    check_target(path.removesuffix(Path(path).suffix) + ".json")
