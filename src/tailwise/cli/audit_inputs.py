"""Audits as commands are given them: files, or models, which are audited first; and where a text may be written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.core.archives import archive_names
from tailwise.core.errors import UsageError
from tailwise.core.storage import exists, is_url, joined

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.checkpoints.checkpoint import Checkpoint


def read_all(models: list[str], *, randomize: bool, device: str, workers: int | None) -> list[Audit]:
    """Audits from files; of models, made now with the recipe of the first audit among them.

    An adapter beside a whole model is merged into the model that it names, for only then the two are of one kind.
    """
    from tailwise.audits.audit import Audit
    from tailwise.audits.of_adapter import adapter_mode
    from tailwise.checkpoints.open import is_adapter

    saved = {model: Audit.load(model) for model in models if is_audit(model)}
    like = next(iter(saved.values()), None)
    settings = _settings_of(like if len(saved) < len(set(models)) else None) | {"device": device, "workers": workers}
    if randomize:
        settings["randomize"] = settings.get("randomize") or 1
    adapters = {model for model in models if model not in saved and is_adapter(model)}
    changes = adapters | {model for model, audit in saved.items() if adapter_mode(audit) == "delta"}
    merged = set() if changes >= set(models) else adapters
    return [saved[model] if model in saved else _audited(model, settings, model in merged) for model in models]


def is_audit(model: str) -> bool:
    """Whether a path names an audit: by its ending, or by what lies there."""
    if is_url(model):
        # Asking a web server for what may be beside a file would fetch pages.
        beside = str(joined(model, "provenance.json"))
        return model.endswith(".audit") or (not model.startswith("http") and exists(beside))
    path = Path(model)
    if model.endswith(".audit") or (path / "provenance.json").is_file():
        return True
    return path.is_file() and "provenance.json" in archive_names(path)


def tell_where(given: str, audit: Audit) -> None:
    """Say where the model is read that an audit names, which the user did not, unless it lies on this machine."""
    if is_audit(given):
        from tailwise.checkpoints.hub import tell_of_request

        tell_of_request(audit.model, given)
        if base := audit.provenance.selection.get("base"):
            tell_of_request(base, given)


def _settings_of(audit: Audit | None) -> dict[str, Any]:
    if audit is None:
        return {}
    from dataclasses import fields

    from tailwise.core.layer_patterns import check_pattern_of_file
    from tailwise.core.recipe import Recipe

    provenance, known = audit.provenance, {item.name for item in fields(Recipe)}
    settings = {key: value for key, value in provenance.recipe.items() if key in known}
    settings["metrics"] = tuple(settings.get("metrics", ()))
    fix = "audit it again with --layers of fewer repeats, none within another"
    check_pattern_of_file(provenance.selection.get("layers"), audit.model, fix)
    selection = {"layers": provenance.selection.get("layers"), "roles": tuple(provenance.selection.get("roles") or ())}
    return settings | selection


def _audited(model: str, settings: dict[str, Any], merged: bool) -> Audit:
    from tailwise.audits.run import audit
    from tailwise.cli.progress_bar import progress_bar

    if not merged:
        with progress_bar() as show:
            return audit(model, progress=show, **settings)
    with _merged(model) as checkpoint, progress_bar() as show:
        return audit(checkpoint, progress=show, **settings)


def _merged(model: str) -> Checkpoint:
    from tailwise.checkpoints.open import open_checkpoint

    try:
        return open_checkpoint(model, adapter_mode="merged")
    except UsageError as error:  # commands that compare have a --base of another meaning
        fix = f"audit it first (tailwise audit {model} --adapter merged --base MODEL -o x.audit), and give x.audit"
        raise UsageError(error.what, where=error.where, fix=fix) from error


def check_text_target(path: str, suffixes: tuple[str, ...]) -> None:
    """Fail before the work where `path` has another suffix or could not be written."""
    from tailwise.report.output_files import check_target

    if Path(path).suffix not in suffixes:
        raise UsageError(f"the suffix {Path(path).suffix!r} is not known", where=path, fix=f"use {', '.join(suffixes)}")
    check_target(path.removesuffix(Path(path).suffix) + ".json")
