"""What adds to tailwise: a decorator for each kind of thing, what such a thing is given, and what it gives."""

from tailwise.app.assistant.functions.function import Place, function
from tailwise.compression.choosing.amounts import Allocation, AllocatorSettings, allocator
from tailwise.compression.choosing.bit_formats import Assignment, Choices, FormatSettings, assigner
from tailwise.compression.export.exporter import exporter
from tailwise.compression.operators.operator import Amount, OperatorResult, Target
from tailwise.compression.operators.registered import pruner, quantizer
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.registry import Registry, unregister
from tailwise.judging.diagnosis.case import Case
from tailwise.judging.diagnosis.finding import Evidence
from tailwise.judging.diagnosis.rule import Cannot, Partly, RuleHit, rule
from tailwise.models.activations import Activations
from tailwise.number_formats.elements import Float8, Integer, MiniFloat, Unsigned, ValueTable
from tailwise.number_formats.formats import number_format
from tailwise.number_formats.number_format import NumberFormat, Quantized, Reach
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.number_formats.scales import Asymmetric, LargestFloat32, PowerOfTwo, Symmetric, TwoLevel
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.view import ChartView
from tailwise.spectrum.metrics.metric import FACTS, metric
from tailwise.spectrum.power_law import TailFit, TailOptions, degenerate, estimator, fixed_tail
from tailwise.training.alarm_rule import Sign, alarm_rule
from tailwise.training.alarm_watch import AlarmWatch

__all__ = [
    "FACTS",
    "Activations",
    "AlarmWatch",
    "Allocation",
    "AllocatorSettings",
    "Amount",
    "Assignment",
    "Asymmetric",
    "Budget",
    "Candidate",
    "Cannot",
    "Case",
    "ChartView",
    "Choices",
    "Evidence",
    "Float8",
    "FormatSettings",
    "Guidance",
    "Integer",
    "LargestFloat32",
    "MiniFloat",
    "NumberFormat",
    "OperatorResult",
    "Partly",
    "Place",
    "PowerOfTwo",
    "Quantized",
    "Reach",
    "Registry",
    "RuleHit",
    "ScaledFormat",
    "Sign",
    "Symmetric",
    "TailFit",
    "TailOptions",
    "Target",
    "TwoLevel",
    "Unsigned",
    "ValueTable",
    "alarm_rule",
    "allocator",
    "assigner",
    "chart",
    "degenerate",
    "estimator",
    "exporter",
    "fixed_tail",
    "function",
    "metric",
    "number_format",
    "pruner",
    "quantizer",
    "rule",
    "unregister",
]  # fmt: skip
