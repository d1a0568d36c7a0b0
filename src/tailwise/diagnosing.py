"""Diagnosis: what the rules say of an audit, and the healthy models that it is compared with."""

from tailwise.judging.diagnosis.atlas import Atlas
from tailwise.judging.diagnosis.diagnose import diagnose
from tailwise.judging.diagnosis.finding import Diagnosis, Evidence, Finding, Health, NotEvaluated, NotLooked, WorstLayer
from tailwise.judging.diagnosis.rule import RULES, AuditRule
from tailwise.judging.thresholds import Overrides

__all__ = [
    "RULES",
    "Atlas",
    "AuditRule",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Health",
    "NotEvaluated",
    "NotLooked",
    "Overrides",
    "WorstLayer",
    "diagnose",
]  # fmt: skip
