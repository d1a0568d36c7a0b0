"""Audits: what `tw.audit` takes and gives, layer by layer."""

from tailwise.audits.audit import Audit, AuditLike
from tailwise.audits.prepare import Prepared, Selection, prepare
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.audits.run import AuditSettings, Progress, RecipeSettings, Step, audit
from tailwise.audits.single import alpha_hill, esd, singular_entropy, stable_rank
from tailwise.audits.table import Table
from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.recipe import Recipe, RunOptions
from tailwise.history.one_table import table
from tailwise.spectrum.metrics.metric import METRICS, Metric
from tailwise.spectrum.power_law import ESTIMATORS, TailFit, TailOptions, fit_tail
from tailwise.spectrum.spectrum import Spectrum

__all__ = [
    "ESTIMATORS",
    "METRICS",
    "Audit",
    "AuditLike",
    "AuditSettings",
    "Checkpoint",
    "Layer",
    "LayerRow",
    "Metric",
    "Prepared",
    "Progress",
    "Provenance",
    "Recipe",
    "RecipeSettings",
    "RunOptions",
    "Selection",
    "Spectrum",
    "Step",
    "Table",
    "TailFit",
    "TailOptions",
    "TensorSpec",
    "alpha_hill",
    "audit",
    "esd",
    "fit_tail",
    "open_checkpoint",
    "prepare",
    "singular_entropy",
    "stable_rank",
    "table",
]  # fmt: skip
