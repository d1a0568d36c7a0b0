"""Runs: what was measured over a training, its store, its alarms, and audits of many models."""

from tailwise.history.point import Alarm, Point, Resumed
from tailwise.history.prune import Retention
from tailwise.history.read import KeptAlarm, KeptAudit, RunSummary
from tailwise.history.runs.bisect import Bisection, bisect
from tailwise.history.runs.found import FoundCheckpoint
from tailwise.history.store import History
from tailwise.history.sweep.sweeping import Sweep, SweepListener, sweep
from tailwise.training.alarm_rule import ALARM_RULES, AlarmRule
from tailwise.training.alarm_sinks import Log, Webhook
from tailwise.training.alarms import Alarms
from tailwise.training.meter import MonitorReport
from tailwise.training.monitor import Monitor
from tailwise.training.options import MonitorSettings, Options
from tailwise.training.sinks import PointSink

__all__ = [
    "ALARM_RULES", "Alarm", "AlarmRule", "Alarms", "Bisection", "FoundCheckpoint", "History", "KeptAlarm",
    "KeptAudit", "Log", "Monitor", "MonitorReport", "MonitorSettings", "Options", "Point", "PointSink", "Resumed",
    "Retention", "RunSummary", "Sweep", "SweepListener", "Webhook", "bisect", "sweep",
]  # fmt: skip
