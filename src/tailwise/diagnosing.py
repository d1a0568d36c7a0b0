"""Diagnosis: what the rules say of an audit or of a run, and the healthy models that it is compared with."""

from tailwise.history.over_steps import CheckpointHealth, RunDiagnosis, diagnose_run
from tailwise.judging.diagnosis.atlas import Atlas
from tailwise.judging.diagnosis.diagnose import diagnose
from tailwise.judging.diagnosis.finding import Diagnosis, Evidence, Finding, Health, NotEvaluated, NotLooked, WorstLayer
from tailwise.judging.diagnosis.rule import RULES, AuditRule
from tailwise.judging.thresholds import Overrides

__all__ = [
    "RULES",
    "Atlas",
    "AuditRule",
    "CheckpointHealth",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Health",
    "NotEvaluated",
    "NotLooked",
    "Overrides",
    "RunDiagnosis",
    "WorstLayer",
    "diagnose",
    "diagnose_run",
]  # fmt: skip
