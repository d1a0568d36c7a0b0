"""Every number that an alarm rule compares with, in one table that a TOML file can override."""

from __future__ import annotations

from collections.abc import Mapping

from tailwise.judging.diagnosis.thresholds import Overrides, Threshold
from tailwise.judging.diagnosis.thresholds import resolved as _resolved
from tailwise.spectrum.trust import N_MIN

_BENCH = "chosen on the tuning seeds of benchmarks/training.py"

TABLE = (
    Threshold("clear_after", 3, "points", "an alarm that flickers is one alarm",
              ("TW701", "TW702", "TW703", "TW704", "TW705", "TW706", "TW707", "TW708", "TW709", "TW710", "TW711",
               "TW712")),
    Threshold("change_z", 6.0, "robust sd", "against earlier changes over as many points of the same layer; " + _BENCH,
              ("TW703", "TW706", "TW707")),
    Threshold("fewest_changes", 10, "points", f"the warm-up is over by then; {_BENCH}", ("TW703", "TW706")),
    Threshold("spike_z", 6.0, "robust sd", "median and MAD of the last points' loss; batches differ; " + _BENCH,
              ("TW702",)),
    Threshold("spike_share", 0.1, "share of the loss", "smaller rises are within what batches differ by", ("TW702",)),
    Threshold("growth", 1.5, "times", "a spectral norm half as large again within a few points", ("TW703",)),
    Threshold("blow_up", 6.0, "times", f"healthy layers grow less even in the warm-up; {_BENCH}", ("TW703",)),
    Threshold("blow_up_frobenius", 3.0, "times", f"early on one direction may grow fast, not all of W; {_BENCH}",
              ("TW703",)),
    Threshold("large_update", 0.08, "‖ΔW‖/‖W‖", f"a rule of thumb is 0.001, healthy starts reach 0.05; {_BENCH}",
              ("TW704",)),
    Threshold("still_share", 0.01, "share of the median", '"not moving" beside layers that do', ("TW705",)),
    Threshold("moved_share", 0.1, "share of the median", "a layer that has never moved was frozen on purpose",
              ("TW705",)),
    Threshold("fewest_layers", 4, "layers", "a median of others needs a few", ("TW705", "TW708")),
    Threshold("rank_fall", 1.5, "times", "a stable rank a third smaller within a few points", ("TW706",)),
    Threshold("collapse_stable_rank", 1.5, "stable rank", "one direction carries two thirds of the energy, as in TW301",
              ("TW706",)),
    Threshold("entropy_rise", 0.25, "nats", f"an effective rank a fifth smaller in a few points; {_BENCH}", ("TW707",)),
    Threshold("stall_share", 0.02, "share of the median", f"of what α of the others moved by; {_BENCH}", ("TW708",)),
    Threshold("stall_median", 0.1, "α", "where all of them rest, none has stalled", ("TW708",)),
    Threshold("band_low", 2.0, "alpha", "HT-SR band (Martin, Peng & Mahoney 2021), as in TW204", ("TW709",)),
    Threshold("band_high", 6.0, "alpha", "HT-SR band (Martin, Peng & Mahoney 2021), as in TW203", ("TW709",)),
    Threshold("band_z", 4.0, "standard errors", f"small healthy models end just below 2; {_BENCH}", ("TW709",)),
    Threshold("fit_max_distance", 1.0, "times the D of 95 % of power laws", "as in TW501: no verdict on a poor fit",
              ("TW709",)),
    Threshold("fit_min_tail", N_MIN, "eigenvalues", "as in TW501", ("TW709",)),
    Threshold("memorised_share", 0.02, "share of the first loss", "text and images leave more to learn than that",
              ("TW711",)),
    Threshold("eval_rise", 0.05, "share of the lowest", "held-out losses differ by less from one to the next",
              ("TW712",)),
    Threshold("traps", 3, "traps", "as in TW205", ("TW710",)),
)  # fmt: skip

DEFAULTS: Mapping[str, Threshold] = {item.name: item for item in TABLE}


def resolved(overrides: Overrides = None) -> dict[str, float]:
    """Every threshold's value, with those of `overrides` (a mapping, or the path of a TOML file) in their place."""
    return _resolved(overrides, DEFAULTS)


def of_rule(code: str) -> list[Threshold]:
    """The thresholds that a rule uses."""
    return [item for item in TABLE if code in item.rules]
