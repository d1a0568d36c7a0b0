"""Audits as commands are given them: files, or models, which are audited first; and where a text may be written."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.core.errors import UsageError
from tailwise.core.storage import exists, is_url, joined

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit


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


def tell_where(given: str, audit: Audit) -> None:
    """Say where the model is read that an audit names, which the user did not, unless it lies on this machine."""
    if is_audit(given):
        from tailwise.checkpoints.hub import tell_of_request

        tell_of_request(audit.model, given)


def _settings_of(audit: Audit | None) -> dict[str, Any]:
    if audit is None:
        return {}
    from dataclasses import fields

    from tailwise.core.recipe import Recipe

    provenance, known = audit.provenance, {item.name for item in fields(Recipe)}
    settings = {key: value for key, value in provenance.recipe.items() if key in known}
    settings["metrics"] = tuple(settings.get("metrics", ()))
    selection = {"layers": provenance.selection.get("layers"), "roles": tuple(provenance.selection.get("roles") or ())}
    return settings | selection


def _audited(model: str, settings: dict[str, Any]) -> Audit:
    from tailwise.audits.run import audit
    from tailwise.cli.progress_bar import progress_bar

    with progress_bar() as show:
        return audit(model, progress=show, **settings)


def check_text_target(path: str, suffixes: tuple[str, ...]) -> None:
    """Fail before the work where `path` has another suffix or could not be written."""
    from tailwise.report.output_files import check_target

    if Path(path).suffix not in suffixes:
        raise UsageError(f"the suffix {Path(path).suffix!r} is not known", where=path, fix=f"use {', '.join(suffixes)}")
    check_target(path.removesuffix(Path(path).suffix) + ".json")
