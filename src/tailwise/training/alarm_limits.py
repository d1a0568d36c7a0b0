"""Every number that an alarm rule compares with, in one table that a TOML file can override."""

from __future__ import annotations

from collections.abc import Mapping

from tailwise.judging.thresholds import Overrides, Threshold
from tailwise.judging.thresholds import resolved as _resolved
from tailwise.spectrum.trust import N_MIN

_BENCH = "chosen on the tuning seeds of benchmarks/training.py"
_RUNS = "chosen on the calibration runs of benchmarks/training_alarms.py"

TABLE = (
    Threshold("clear_after", 3, "points", "an alarm that flickers is one alarm",
              ("TW701", "TW702", "TW703", "TW704", "TW705", "TW706", "TW707", "TW708", "TW709", "TW710", "TW711",
               "TW712", "TW713")),
    Threshold("clear_after_losses", 50, "steps", "the same, of losses between points", ("TW701", "TW702")),
    Threshold("change_z", 6.0, "robust sd", "against earlier changes over as many points of the same layer; " + _BENCH,
              ("TW703", "TW706", "TW707")),
    Threshold("unit_gain", 1.0, "spectral norm", "a layer below it makes all that it is given smaller; "
              "Yang, Simon & Bernstein 2023, arXiv:2310.17813, have about 1 for layers that learn",
              ("TW703", "TW704", "TW706", "TW707")),
    Threshold("fewest_changes", 10, "points", f"the warm-up is over by then; {_BENCH}", ("TW703", "TW704", "TW706")),
    Threshold("spike_z", 6.0, "robust sd", "median and MAD of the last points' loss; batches differ; " + _BENCH,
              ("TW702",)),
    Threshold("spike_share", 0.1, "share of the loss", "smaller rises are within what batches differ by", ("TW702",)),
    Threshold("spike_alone", 3.0, "times", "one odd batch must stand out as many times as far as five in a row",
              ("TW702",)),
    Threshold("lone_floor", 0.2, "share of the first loss", f"near zero, one example of a batch is as much; {_RUNS}",
              ("TW702",)),
    Threshold("loss_floor", 0.1, "share of the first loss", f"near zero one batch is many times another; {_BENCH}",
              ("TW702", "TW711", "TW712")),
    Threshold("growth", 2.0, "times", f"healthy layers take more points to double; {_RUNS}", ("TW703",)),
    Threshold("blow_up", 6.0, "times", f"healthy layers grow less even in the warm-up; {_BENCH}", ("TW703",)),
    Threshold("blow_up_frobenius", 3.0, "times", f"early on one direction may grow fast, not all of W; {_BENCH}",
              ("TW703",)),
    Threshold("large_update", 0.08, "‖ΔW‖/‖W‖", f"a rule of thumb is 0.001, healthy starts reach 0.05; {_BENCH}",
              ("TW704",)),
    Threshold("young_update", 6.0, "parts of the age", f"of what began at zero, with a warm-up; {_RUNS}", ("TW704",)),
    Threshold("young_walk", 1.0, "parts of √age", "of what began at zero and goes to and fro, as by SGD near its end: "
              f"‖W‖ is as the root of its age; {_RUNS}", ("TW704",)),
    Threshold("young_floor", 0.025, "‖ΔW‖/‖W‖", f"however old it is; {_RUNS}", ("TW704",)),
    Threshold("young_growth", 1.5, "times", f"of what began at zero, beside what its age explains; {_RUNS}",
              ("TW703",)),
    Threshold("jump_floor", 0.005, "‖ΔW‖/‖W‖", f"a layer that wakes up moves by many times next to nothing; {_RUNS}",
              ("TW704",)),
    Threshold("update_jump", 5.0, "times", f"beside the largest of ten points before; {_RUNS}", ("TW704",)),
    Threshold("lost_share", 0.3, "share of ‖W‖_F", f"trained weights keep more than that; {_RUNS}", ("TW713",)),
    Threshold("still_share", 0.01, "share of the median", '"not moving" beside layers that do', ("TW705",)),
    Threshold("moved_share", 0.1, "share of the median", "a layer that has never moved was frozen on purpose",
              ("TW705",)),
    Threshold("fewest_layers", 4, "layers", "a median of others needs a few", ("TW705", "TW708")),
    Threshold("rank_fall", 2.5, "times", f"healthy layers come to half of it; {_RUNS}", ("TW706",)),
    Threshold("collapse_stable_rank", 1.5, "stable rank", "one direction carries two thirds of the energy, as in TW301",
              ("TW706",)),
    Threshold("entropy_rise", 0.25, "nats", f"an effective rank a fifth smaller in a few points; {_BENCH}", ("TW707",)),
    Threshold("stall_share", 0.02, "share of the median", f"of what α of the others moved by; {_BENCH}", ("TW708",)),
    Threshold("stall_median", 0.1, "α", "where all of them rest, none has stalled, and what never moved by it neither",
              ("TW708",)),
    Threshold("band_low", 2.0, "alpha", "HT-SR band (Martin, Peng & Mahoney 2021), as in TW204", ("TW709",)),
    Threshold("band_high", 6.0, "alpha", "HT-SR band (Martin, Peng & Mahoney 2021), as in TW203", ("TW709",)),
    Threshold("band_high_muon", 8.0, "alpha", f"under Muon healthy α reach 6.6 (98th percentile); {_RUNS}",
              ("TW709",)),
    Threshold("band_z", 4.0, "standard errors", f"small healthy models end just below 2; {_BENCH}", ("TW709",)),
    Threshold("tail_share", 0.5, "share of the rank", f"a fit to more of a spectrum is of its bulk; {_RUNS}",
              ("TW709",)),
    Threshold("fit_max_distance", 1.0, "times the D of 95 % of power laws", "as in TW501: no verdict on a poor fit",
              ("TW709",)),
    Threshold("fit_min_tail", N_MIN, "eigenvalues", "as in TW501", ("TW709",)),
    Threshold("memorised_share", 0.02, "share of the first loss", "text and images leave more to learn than that",
              ("TW711",)),
    Threshold("learned_share", 0.2, "share of the first loss", f"a held-out loss that fell as far; {_RUNS}",
              ("TW711",)),
    Threshold("held_gap", 0.2, "share of the held-out loss", f"of which the training loss is below it; {_RUNS}",
              ("TW711",)),
    Threshold("eval_rise", 0.05, "share of the lowest", "less is not worth a word", ("TW712",)),
    Threshold("eval_z", 5.0, "robust sd", f"the lowest of many is low by chance; {_RUNS}", ("TW712",)),
    Threshold("traps", 3, "traps", "as in TW205", ("TW710",)),
)  # fmt: skip

DEFAULTS: Mapping[str, Threshold] = {item.name: item for item in TABLE}


def resolved(overrides: Overrides = None) -> dict[str, float]:
    """Every threshold's value, with those of `overrides` (a mapping, or the path of a TOML file) in their place."""
    return _resolved(overrides, DEFAULTS)


def of_rule(code: str) -> list[Threshold]:
    """The thresholds that a rule uses."""
    return [item for item in TABLE if code in item.rules]
