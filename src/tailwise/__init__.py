"""tailwise reads a neural network's health in the spectra of its weights.

>>> import tailwise as tw
>>> import numpy as np
>>> weights = {"layers.0.mlp.up_proj.weight": np.random.default_rng(0).standard_normal((96, 64))}
>>> audit = tw.audit(weights, use_cache=False)    # or a path, a URL, org/model on the Hub, an nn.Module
>>> audit["layers.0.mlp.up_proj"].spectrum
Spectrum(64 eigenvalues of 96×64, λ_max=292.7, gram-float64, ±2.1e-12)
>>> frame = audit.table().to_pandas()

Names are loaded when they are used: importing tailwise imports neither torch nor numpy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailwise import auditing as auditing
    from tailwise import comparing as comparing
    from tailwise import diagnosing as diagnosing
    from tailwise import errors as errors
    from tailwise import extend as extend
    from tailwise import gates as gates
    from tailwise import plans as plans
    from tailwise import precision as precision
    from tailwise import runs as runs
    from tailwise import scoring as scoring
    from tailwise.audits.audit import Audit
    from tailwise.audits.prepare import Prepared, prepare
    from tailwise.audits.rows import Layer, LayerRow
    from tailwise.audits.run import audit
    from tailwise.audits.single import alpha_hill, esd, singular_entropy, stable_rank
    from tailwise.checkpoints.checkpoint import Checkpoint
    from tailwise.checkpoints.open import open_checkpoint
    from tailwise.compression.applying.apply import apply
    from tailwise.core.errors import TailwiseError, UnreadableError, UsageError
    from tailwise.core.recipe import Recipe, RunOptions
    from tailwise.history.one_table import table
    from tailwise.history.over_steps import diagnose_run
    from tailwise.judging.compare.compare_audits import compare
    from tailwise.judging.compare.ranking import rank
    from tailwise.judging.diagnosis.diagnose import diagnose
    from tailwise.judging.gates.checking import check
    from tailwise.models.evaluation.evaluate import evaluate
    from tailwise.models.walking.load_pruned import load_pruned
    from tailwise.report.render import plot
    from tailwise.spectrum.metrics.metric import METRICS, metric
    from tailwise.spectrum.power_law import TailFit, fit_tail
    from tailwise.spectrum.spectrum import Spectrum
    from tailwise.training import remedies as remedies
    from tailwise.training.alarms import Alarms
    from tailwise.training.monitor import Monitor

__version__ = "0.2.0"

_HOMES = {
    "Alarms": "tailwise.training.alarms",
    "Audit": "tailwise.audits.audit",
    "Checkpoint": "tailwise.checkpoints.checkpoint",
    "Layer": "tailwise.audits.rows",
    "LayerRow": "tailwise.audits.rows",
    "METRICS": "tailwise.spectrum.metrics.metric",
    "Monitor": "tailwise.training.monitor",
    "Prepared": "tailwise.audits.prepare",
    "Recipe": "tailwise.core.recipe",
    "RunOptions": "tailwise.core.recipe",
    "Spectrum": "tailwise.spectrum.spectrum",
    "TailFit": "tailwise.spectrum.power_law",
    "TailwiseError": "tailwise.core.errors",
    "UnreadableError": "tailwise.core.errors",
    "UsageError": "tailwise.core.errors",
    "alpha_hill": "tailwise.audits.single",
    "apply": "tailwise.compression.applying.apply",
    "esd": "tailwise.audits.single",
    "audit": "tailwise.audits.run",
    "check": "tailwise.judging.gates.checking",
    "compare": "tailwise.judging.compare.compare_audits",
    "diagnose": "tailwise.judging.diagnosis.diagnose",
    "diagnose_run": "tailwise.history.over_steps",
    "evaluate": "tailwise.models.evaluation.evaluate",
    "fit_tail": "tailwise.spectrum.power_law",
    "load_pruned": "tailwise.models.walking.load_pruned",
    "metric": "tailwise.spectrum.metrics.metric",
    "open_checkpoint": "tailwise.checkpoints.open",
    "plot": "tailwise.report.render",
    "prepare": "tailwise.audits.prepare",
    "rank": "tailwise.judging.compare.ranking",
    "singular_entropy": "tailwise.audits.single",
    "stable_rank": "tailwise.audits.single",
    "table": "tailwise.history.one_table",
}

#: Modules whose names are used through them: `tw.plans.Plan`, `tw.remedies.AdaptiveClip`.
_ROOMS = {
    "errors": "tailwise.core.errors",
    "remedies": "tailwise.training.remedies",
    **{name: f"tailwise.{name}" for name in (
        "auditing", "comparing", "diagnosing", "extend", "gates", "plans", "precision", "runs", "scoring",
    )},
}  # fmt: skip

__all__ = [
    "METRICS", "Alarms", "Audit", "Checkpoint", "Layer", "LayerRow", "Monitor", "Prepared", "Recipe", "RunOptions",
    "Spectrum",
    "TailFit", "TailwiseError", "UnreadableError", "UsageError", "__version__", "alpha_hill", "apply", "audit",
    "check", "compare", "diagnose", "diagnose_run", "esd", "evaluate", "fit_tail", "load_pruned", "metric",
    "open_checkpoint", "plot", "prepare", "rank", "singular_entropy", "stable_rank", "table",
]  # fmt: skip


class _Public(ModuleType):
    """Importing the room `tailwise.judging.compare` sets an attribute here, which must not hide the verb `compare`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Public


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'tailwise' has no attribute {name!r}{_elsewhere(name)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def _elsewhere(name: str) -> str:
    """Where a name is that somebody takes to be here, or which name is near."""
    if name.startswith("_"):
        return ""
    import ast
    import difflib
    from pathlib import Path

    for room in _ROOMS:
        source = Path(__file__).with_name(f"{room}.py").read_text(encoding="utf-8")
        if any(isinstance(node, ast.alias) and node.name == name for node in ast.walk(ast.parse(source))):
            return f"; it is tailwise.{room}.{name}"
    if name in ("load", "read", "load_audit"):
        return "; Audit.load reads a saved audit, audit() measures a model, open_checkpoint() opens one"
    near = difflib.get_close_matches(name, [*__all__, *_ROOMS], n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
