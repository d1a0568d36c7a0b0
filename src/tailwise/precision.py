"""Precision: every matrix of a model in several number formats."""

from tailwise.audits.precision.study import LayerStudy, PrecisionStudy, Reading
from tailwise.audits.precision.studying import StudyOptions, study
from tailwise.audits.precision.verdict import Bound, Verdict
from tailwise.number_formats.formats import format_names, parse_format
from tailwise.number_formats.number_format import NumberFormat, Quantized, Reach

__all__ = [
    "Bound", "LayerStudy", "NumberFormat", "PrecisionStudy", "Quantized", "Reach", "Reading", "StudyOptions",
    "Verdict", "format_names", "parse_format", "study",
]  # fmt: skip
