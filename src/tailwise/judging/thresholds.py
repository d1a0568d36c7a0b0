"""Every number that a rule on audits or on runs compares with, in one table that a TOML file can override."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailwise.core.errors import UnreadableError, UsageError, unknown_name
from tailwise.core.harmless import shortened
from tailwise.core.storage import read_text, toml_of
from tailwise.core.typed import is_finite
from tailwise.spectrum.trust import LARGEST_SHARE, N_MIN


@dataclass(frozen=True)
class Threshold:
    """A bound with the reason for its value."""

    name: str
    value: float
    unit: str
    reason: str
    rules: tuple[str, ...]  # codes of the rules that use it


_BENCH = "chosen on the tuning seeds of benchmarks/sick_models.py"
_REAL = "chosen on the tuning models of benchmarks/verdict.py"
_TUNED = "chosen on the tuning seeds of benchmarks/training.py"
_RUNS = "chosen on the calibration runs of benchmarks/training_alarms.py"

TABLE = (
    Threshold("significance", 0.05, "false-discovery rate", "convention; Benjamini-Hochberg over all tests of a rule",
              ("TW101", "TW102", "TW103", "TW203", "TW204", "TW302")),
    Threshold("min_evals", 50, "eigenvalues", "HT-SR gives no verdict on fewer; noise and training overlap below",
              ("TW101", "TW102", "TW103", "TW201", "TW202", "TW203", "TW204", "TW205", "TW206", "TW301", "TW302",
               "TW303", "TW401", "TW402", "TW501", "TW502")),
    Threshold("min_blocks", 5, "blocks", "with fewer, not even a perfect trend has a p-value below 0.01",
              ("TW101", "TW102", "TW103", "TW401")),
    Threshold("min_peers", 4, "matrices", "a median and its scatter need a few values",
              ("TW201", "TW301", "TW302", "TW303", "TW401")),
    Threshold("noise_z", 3.5, "sd", "one in 4000 by chance; widened by Student's t, as baselines are a few draws",
              ("TW103", "TW201", "TW202", "TW203", "TW206", "TW303")),
    Threshold("noise_spikes", 1, "eigenvalues", "noise passes the 99 % Tracy-Widom edge once in a hundred matrices",
              ("TW103", "TW201", "TW202", "TW203", "TW206", "TW303")),
    Threshold("noise_mp_z", 4.0, "sd", "above the fit of noise of the shape, by 40 simulated matrices of it",
              ("TW103", "TW201", "TW202", "TW203", "TW206", "TW303")),
    Threshold("order_z", 4.0, "sd", "the largest of four tests: by simulation 2 of 24,000 matrices of normal or "
              "Student-t entries of 4 degrees of freedom are above, and one in 1000 of 2.2 degrees",
              ("TW103", "TW201", "TW202", "TW203", "TW206", "TW303")),
    Threshold("no_order_share", 0.02, "share of matrices",
              f"training that has just begun leaves most matrices so, and small recurrent models some; {_REAL}",
              ("TW206",)),
    Threshold("noise_min_evals", 100, "eigenvalues",
              f"below, small matrices of healthy models look like noise; {_REAL}", ("TW201", "TW303")),
    Threshold("noise_in_atlas", 0.2, "share of models", "what a fifth of healthy models have is no fault",
              ("TW201", "TW303")),
    Threshold("atlas_share", 0.05, "share of healthy matrices", "convention: what one in twenty healthy ones passes",
              ("TW301", "TW302")),
    Threshold("most_layers", 0.8, "share", '"nearly all", in the words of the alpha manual',
              ("TW201", "TW202")),
    Threshold("most_roles", 0.5, "share of roles", "what happens along depth happens in more than one role",
              ("TW101", "TW102")),
    Threshold("min_history", 4, "earlier audits", "with fewer, not even a steady change has a p-value below 0.01",
              ("TW302",)),
    Threshold("light_alpha_hill", 5.0, "alpha_hill", "the HT-SR alpha manual: above 5 everywhere is under-trained",
              ("TW101", "TW202")),
    Threshold("light_share_of_noise", 0.6, "share of baseline", f"makes the manual's 5 portable; {_BENCH}",
              ("TW101", "TW202")),
    Threshold("step_alpha_hill", 4.0, "alpha_hill", "the HT-SR alpha manual: above 4 is light-tailed", ("TW101",)),
    Threshold("step_share_of_noise", 0.45, "share of baseline",
              "deep blocks that learned a seventh of what they should, on two small language models", ("TW101",)),
    Threshold("stagnation_ratio", 1.5, "times its neighbours", f"smaller steps occur in healthy models; {_BENCH}",
              ("TW101", "TW103")),
    Threshold("under_trained_alpha", 6.0, "alpha", "HT-SR band (Martin, Peng & Mahoney 2021)", ("TW203",)),
    Threshold("over_trained_alpha", 2.0, "alpha", "HT-SR band (Martin, Peng & Mahoney 2021)", ("TW204",)),
    Threshold("over_trained_share", 0.25, "share of layers", f"single layers below 2 occur in healthy models; {_BENCH}",
              ("TW204",)),
    Threshold("over_trained_least", 4, "layers", f"a quarter of two layers is no pattern; {_REAL}", ("TW204",)),
    Threshold("fit_max_distance", 1.0, "times the D that 95 % of power laws with such a tail do not exceed",
              "the definition of a trusted fit",
              ("TW203", "TW204", "TW402", "TW501", "TW709")),
    Threshold("fit_max_share", LARGEST_SHARE, "share of eigenvalues",
              "a tail of more than half the spectrum is the bulk", ("TW203", "TW402", "TW502")),
    Threshold("fit_min_tail", N_MIN, "eigenvalues", "the definition of a trusted fit",
              ("TW203", "TW204", "TW402", "TW709")),
    Threshold("rival_p", 0.05, "p of Vuong's test", "convention; Clauset et al. 2009 use 0.1",
              ("TW203", "TW204", "TW402", "TW501")),
    Threshold("traps", 3, "traps", "noise gives 0.01 on average, Student-t entries of 4 degrees of freedom a few",
              ("TW205", "TW710")),
    Threshold("collapse_alpha_hill", 1.75, "alpha_hill", f'the alpha manual\'s "near 1"; {_BENCH}', ("TW301",)),
    Threshold("collapse_scale", 0.5, "log10 λ_max", "a spectral norm 1.8 times that of its peers", ("TW301",)),
    Threshold("collapse_runaway", 1.5, "log10 λ_max", "a spectral norm 5.6 times that of its peers: no α is asked",
              ("TW301",)),
    Threshold("collapse_stable_rank", 1.5, "stable rank", "one direction carries two thirds of the energy",
              ("TW301", "TW706")),
    Threshold("collapse_single", 1.1, "stable rank", "one direction carries nine tenths of the energy: no peer asked",
              ("TW301",)),
    Threshold("collapse_rank_share", 0.5, "share of peers", "half the stable rank of its role", ("TW301",)),
    Threshold("collapse_noise_share", 0.1, "share of noise's stable rank", "a tenth of what noise of the shape has",
              ("TW301",)),
    Threshold("peer_z", 4.0, "robust sd", "median and MAD of the role; one in 10⁴ by chance", ("TW301", "TW302")),
    Threshold("saturation_share", 0.6, "share of noise's effective rank",
              "well below what trained layers keep", ("TW302",)),
    Threshold("saturation_clear", 0.25, "share of noise's effective rank",
              f"first blocks and regressors of healthy models go down to 0.31 of noise's; {_REAL}", ("TW302",)),
    Threshold("saturation_alone", 0.2, "share of noise's effective rank",
              "for a layer without peers; healthy heads and embeddings keep 0.4 and more", ("TW302",)),
    Threshold("saturation_noise_share", 0.1, "share of noise's stable rank", "the same for its stable rank",
              ("TW302",)),
    Threshold("saturation_stable_rank", 0.5, "share of peers or start", "half the directions it had, or peers have",
              ("TW302",)),
    Threshold("saturation_floor", 2.0, "stable rank", "what is this low already cannot halve", ("TW302",)),
    Threshold("isotropy_share", 0.99, "share of noise's effective rank", f"trained layers keep 0.5 to 0.98; {_BENCH}",
              ("TW102", "TW303")),
    Threshold("evolved_share", 0.96, "share of noise's effective rank", f"a layer that learned is below; {_BENCH}",
              ("TW102",)),
    Threshold("scale_jump", 1.0, "log10 λ_max", "a spectral norm 3.2 times that of its neighbours", ("TW401",)),
    Threshold("scale_jump_z", 6.0, "robust sd", "against the steps of the same chain of layers", ("TW401",)),
    Threshold("scale_jump_end", 1.5, "log10 λ_max",
              f"for the first and the last block, which differ in healthy models by up to 1.1, and beside all "
              f"matrices of the role; {_REAL}", ("TW401",)),
    Threshold("scale_model", 0.65, "log10 of the entries times √inputs",
              f"healthy matrices lie up to 0.5 above their role; {_REAL}", ("TW401",)),
    Threshold("scale_model_z", 2.0, "robust sd", f"against the other matrices of the role, or the model; {_REAL}",
              ("TW401",)),
    Threshold("scale_model_least", 3, "matrices", "two others, at least, say what is usual", ("TW401",)),
    Threshold("collapse_conv", 1.05, "stable rank",
              f"convolutions of inputs above 0 have 1.10 in healthy models; {_REAL}", ("TW301",)),
    Threshold("dead_share", 0.01, "share of directions",
              f"a padding row, or the sine of frequency 0, is one row of zeros by design; {_REAL}", ("TW602", "TW603")),
    Threshold("rank_loss_share", 0.05, "share of directions", "bf16 rounding hides single ones in healthy matrices",
              ("TW603",)),
    Threshold("erg_share", 0.5, "share of eigenvalues", "the two tails differ by half the spectrum", ("TW402",)),
    Threshold("clear_after", 3, "points", "an alarm that flickers is one alarm",
              ("TW701", "TW702", "TW703", "TW704", "TW705", "TW706", "TW707", "TW708", "TW709", "TW710", "TW711",
               "TW712", "TW713")),
    Threshold("clear_after_losses", 50, "steps", "the same, of losses between points", ("TW701", "TW702")),
    Threshold("change_z", 6.0, "robust sd", "against earlier changes over as many points of the same layer; " + _TUNED,
              ("TW703", "TW706", "TW707")),
    Threshold("unit_gain", 1.0, "spectral norm", "a layer below it makes all that it is given smaller; "
              "Yang, Simon & Bernstein 2023, arXiv:2310.17813, have about 1 for layers that learn",
              ("TW703", "TW704", "TW706", "TW707")),
    Threshold("fewest_changes", 10, "points", f"the warm-up is over by then; {_TUNED}", ("TW703", "TW704", "TW706")),
    Threshold("spike_z", 6.0, "robust sd", "median and MAD of the last points' loss; batches differ; " + _TUNED,
              ("TW702",)),
    Threshold("spike_share", 0.1, "share of the loss", "smaller rises are within what batches differ by", ("TW702",)),
    Threshold("spike_alone", 3.0, "times", "one odd batch must stand out as many times as far as five in a row",
              ("TW702",)),
    Threshold("level_z", 4.0, "standard errors", f"of medians over many steps; healthy runs reach 2.1; {_RUNS}",
              ("TW702",)),
    Threshold("lone_floor", 0.2, "share of the first loss", f"near zero, one example of a batch is as much; {_RUNS}",
              ("TW702",)),
    Threshold("loss_floor", 0.1, "share of the first loss", f"near zero one batch is many times another; {_TUNED}",
              ("TW702", "TW711", "TW712")),
    Threshold("growth", 2.0, "times", f"healthy layers take more points to double; {_RUNS}", ("TW703",)),
    Threshold("blow_up", 6.0, "times", f"healthy layers grow less even in the warm-up; {_TUNED}", ("TW703",)),
    Threshold("blow_up_frobenius", 3.0, "times", f"early on one direction may grow fast, not all of W; {_TUNED}",
              ("TW703",)),
    Threshold("large_update", 0.08, "‖ΔW‖/‖W‖", f"a rule of thumb is 0.001, healthy starts reach 0.05; {_TUNED}",
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
    Threshold("beside_jump", 2.5, "times", f"of an adapter's part beside its like; healthy ones reach 1.7; {_RUNS}",
              ("TW704",)),
    Threshold("lost_share", 0.3, "share of ‖W‖_F", f"trained weights keep more than that; {_RUNS}", ("TW713",)),
    Threshold("still_share", 0.01, "share of the median", '"not moving" beside layers that do', ("TW705",)),
    Threshold("moved_share", 0.1, "share of the median", "a layer that has never moved was frozen on purpose",
              ("TW705",)),
    Threshold("fewest_layers", 4, "layers", "a median of others needs a few", ("TW705", "TW708")),
    Threshold("rank_fall", 2.5, "times", f"healthy layers come to half of it; {_RUNS}", ("TW706",)),
    Threshold("entropy_rise", 0.25, "nats", f"an effective rank a fifth smaller in a few points; {_TUNED}", ("TW707",)),
    Threshold("stall_share", 0.02, "share of the median", f"of what α of the others moved by; {_TUNED}", ("TW708",)),
    Threshold("stall_median", 0.1, "α", "where all of them rest, none has stalled, and what never moved by it neither",
              ("TW708",)),
    Threshold("band_low", 2.0, "alpha", "HT-SR band (Martin, Peng & Mahoney 2021), as in TW204", ("TW709",)),
    Threshold("band_high", 6.0, "alpha", "HT-SR band (Martin, Peng & Mahoney 2021), as in TW203", ("TW709",)),
    Threshold("band_high_muon", 8.0, "alpha", f"under Muon healthy α reach 6.6 (98th percentile); {_RUNS}",
              ("TW709",)),
    Threshold("band_z", 4.0, "standard errors", f"small healthy models end just below 2; {_TUNED}", ("TW709",)),
    Threshold("tail_share", 0.5, "share of the rank", f"a fit to more of a spectrum is of its bulk; {_RUNS}",
              ("TW709",)),
    Threshold("memorised_share", 0.02, "share of the first loss", "text and images leave more to learn than that",
              ("TW711",)),
    Threshold("learned_share", 0.2, "share of the first loss", f"a held-out loss that fell as far; {_RUNS}",
              ("TW711",)),
    Threshold("alone_fall", 0.02, "share of the loss", "less is not worth a word", ("TW711",)),
    Threshold("alone_z", 6.0, "sd", f"by which a training loss falls on its own; {_RUNS}", ("TW711",)),
    Threshold("follows_share", 0.2, "share of the fall", f"that the held-out loss has too; {_RUNS}", ("TW711",)),
    Threshold("held_gap", 0.2, "share of the held-out loss", f"of which the training loss is below it; {_RUNS}",
              ("TW711",)),
    Threshold("eval_rise", 0.05, "share of the lowest", "less is not worth a word", ("TW712",)),
    Threshold("eval_z", 5.0, "robust sd", f"the lowest of many is low by chance; {_RUNS}", ("TW712",)),
)  # fmt: skip

DEFAULTS: Mapping[str, Threshold] = {item.name: item for item in TABLE}

Overrides = Mapping[str, float] | str | Path | None


def resolved(overrides: Overrides = None, rules: Iterable[str] = ()) -> dict[str, float]:
    """The value of every threshold, or of those that the rules with these codes use.

    `overrides` is a mapping, or the path of a TOML file with `name = value` lines. One file may serve rules on audits
    and on runs: what others of the table use is passed over in it. Raises `UsageError` for a name that is not in the
    table, in a mapping for one that none of `rules` uses, and for a value that is not a number.
    """
    codes = set(rules)
    used = {item.name: item for item in TABLE if not codes or codes.intersection(item.rules)}
    values = {name: item.value for name, item in used.items()}
    given = _read(Path(overrides)) if isinstance(overrides, str | Path) else dict(overrides or {})
    for name, value in given.items():
        if name not in DEFAULTS:
            raise unknown_name("threshold", name, used)
        if not is_finite(value):
            raise UsageError(
                f"the threshold {name} is {shortened(repr(value), 100)}",
                where=overrides if isinstance(overrides, str | Path) else None,
                fix=f"give a number, e.g. {DEFAULTS[name].value:g}",
            )
        if name in used:
            values[name] = float(value)
        elif not isinstance(overrides, str | Path):
            others = ", ".join(DEFAULTS[name].rules)
            raise UsageError(f"the threshold {name} is of {others}, which do not look here", fix="leave it out")
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        return toml_of(read_text(path))
    except OSError as error:
        raise UnreadableError(f"could not be read: {error.strerror or error}", where=path) from error
    except ValueError as error:
        raise UsageError(f"is not TOML: {error}", where=path, fix='write lines such as "noise_z = 5"') from error


def of_rule(code: str) -> list[Threshold]:
    """The thresholds that a rule uses."""
    return [item for item in TABLE if code in item.rules]
