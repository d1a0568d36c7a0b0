"""Plans: how much of which tensor goes or in which format it is stored, carried out, exported and recovered from."""

from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.choosing.amounts import ALLOCATORS, AllocatorSettings
from tailwise.compression.choosing.bit_formats import ASSIGNERS, FormatSettings
from tailwise.compression.export.exporter import EXPORTERS, export
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import TensorChoice
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.diff import PlanDiff
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.site import Site
from tailwise.compression.recovery.recover import RecoverOptions, recover
from tailwise.compression.recovery.recovered import Recovered
from tailwise.compression.treating.applied import Applied, Reached
from tailwise.models.walking.load_pruned import load_pruned

__all__ = [
    "ALLOCATORS",
    "ASSIGNERS",
    "EXPORTERS",
    "OPERATORS",
    "AllocatorSettings",
    "Applied",
    "ApplyOptions",
    "Budget",
    "Decision",
    "FormatSettings",
    "Plan",
    "PlanDiff",
    "QuantizeRequest",
    "Reached",
    "RecoverOptions",
    "Recovered",
    "Request",
    "Site",
    "TensorChoice",
    "apply",
    "export",
    "load_pruned",
    "plan_prune",
    "plan_quantize",
    "recover",
]  # fmt: skip
