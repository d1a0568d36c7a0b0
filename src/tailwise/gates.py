"""Gates: expectations of an audit, and what came of them."""

from tailwise.judging.gates.checking import check
from tailwise.judging.gates.expectation import Bounds, CheckResult, Expectation, ExpectationOutcome, Violation
from tailwise.judging.gates.parse import Expectations, parse_expectations, read_expectations

__all__ = [
    "Bounds", "CheckResult", "Expectation", "ExpectationOutcome", "Expectations", "Violation", "check",
    "parse_expectations", "read_expectations",
]  # fmt: skip
