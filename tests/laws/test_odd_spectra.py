"""Odd spectra in every stored type, through everything that reads an audit: nothing absurd is OK, nothing breaks."""

from __future__ import annotations

import math
import re

import pytest
import torch

import tailwise as tw
from tailwise.audits.precision.studying import study
from tailwise.audits.trusted import doubt, left_out, usable
from tailwise.judging.compare.ranking import rank
from tailwise.judging.gates.checking import check
from tailwise.judging.gates.parse import parse_expectations
from tailwise.spectrum.trust import N_MIN, largest_distance

N, M = 160, 96
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip
#: What a trusted exponent lies between: below 1 no power law can be normalised, above 20 a tail is an edge.
SANE = (1.0, 20.0)


def normal(seed, n=N, m=M):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(sigma, seed=0):
    """A matrix with these M singular values."""
    left, right = torch.linalg.qr(normal(seed))[0], torch.linalg.qr(normal(seed + 1, M, M))[0]
    return left @ torch.diag(sigma.double()) @ right.T


def spikes(*heights):
    return with_spectrum(torch.tensor([*heights, *[1.0] * (M - len(heights))]))


def pruned(share, seed=3):
    W = normal(seed)
    return W * (W.abs() > W.abs().flatten().quantile(share))


def toeplitz(decay):
    lag = torch.arange(N)[:, None] - torch.arange(M)
    return torch.exp(-lag.abs().double() / decay)


def one_hot():
    W = torch.zeros(N, M, dtype=torch.float64)
    W[torch.arange(M), torch.randperm(M, generator=torch.Generator().manual_seed(5))] = 1.0
    return W


def blocks(size):
    W = torch.zeros(N, M, dtype=torch.float64)
    for start in range(0, M, size):
        W[start : start + size, start : start + size] = 1.0
    return W


def power(exponent, seed=7):
    """The λ of a power law with that exponent: not odd, and to be trusted."""
    shares = (torch.arange(M).double() + 0.5) / M
    return with_spectrum(shares ** (-0.5 / (exponent - 1)), seed)


def odd():
    """Forty shapes and more: name → matrix."""
    eye = torch.eye(N, M, dtype=torch.float64)
    found = {"zeros": torch.zeros(N, M, dtype=torch.float64), "ones": torch.ones(N, M, dtype=torch.float64),
             "identity": eye, "orthogonal": with_spectrum(torch.ones(M)), "one_hot": one_hot(),
             "permuted_scaled": 0.01 * one_hot(), "noise": normal(1), "small_noise": 1e-3 * normal(2),
             "uniform": torch.rand(N, M, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) - 0.5,
             "sign": normal(6).sign(), "ternary": normal(8).mul(0.8).round().clamp(-1, 1),
             "row": torch.ones(N, 1).double() @ normal(9, 1, M),
             "two_points": with_spectrum(torch.tensor([2.0] * (M // 2) + [1.0] * (M // 2))),
             "three_points": with_spectrum(torch.tensor([3.0] * 32 + [2.0] * 32 + [1.0] * 32)),
             "ramp": with_spectrum(torch.linspace(1, 2, M)), "geometric": with_spectrum(torch.logspace(0, 2, M)),
             "steep": with_spectrum(torch.logspace(-3, 2, M)), "student": torch.tensor(0)}  # fmt: skip
    generator = torch.Generator().manual_seed(10)
    found["student"] = torch.randn(N, M, generator=generator, dtype=torch.float64) / torch.rand(
        N, M, generator=generator, dtype=torch.float64
    ).clamp(min=1e-2)
    found |= {f"identity_{e:g}": eye + e * normal(11) for e in (1e-12, 1e-6, 1e-3, 3e-2)}
    found |= {f"rank_{r}": normal(12, N, r) @ normal(13, r, M) / r for r in (2, 4, 8, 16, 32, 64)}
    found |= {f"pruned_{share:g}": pruned(share) for share in (0.5, 0.95, 0.999)}
    found |= {f"toeplitz_{decay:g}": toeplitz(decay) for decay in (1.0, 5.0, 50.0)}
    found |= {f"blocks_{size}": blocks(size) for size in (2, 8, 32)}
    found |= {"spike": spikes(9.0), "spikes_3": spikes(9.0, 6.0, 4.0), "spikes_equal": spikes(*[5.0] * 5),
              "spikes_20": spikes(*torch.linspace(9, 2, 20).tolist())}  # fmt: skip
    found |= {f"power_{exponent:g}": power(exponent) for exponent in (2.0, 3.0)}
    return {f"layers.{index}.{name}.weight": value for index, (name, value) in enumerate(found.items())}


ODD = odd()


@pytest.fixture(scope="module")
def audits():
    """Type → the audit of all of them in it."""
    return {
        code: tw.audit({name: W.to(dtype) for name, W in ODD.items()}, use_cache=False, baseline_replicas=8)
        for code, dtype in TYPES.items()
    }  # fmt: skip


def rows_of(audit):
    return {row.name: row for row in audit.rows}


def short(name):
    return name.split(".")[2]


def test_there_are_forty_odd_ones():
    assert len(ODD) >= 40


@pytest.mark.parametrize("code", TYPES)
def test_everything_is_measured_and_every_number_is_one(audits, code):
    for row in audits[code].rows:
        assert row.measured, (row.name, row.status, row.reason)
        assert row.dtype == code
        assert all(value is None or math.isfinite(value) for value in row.metrics.values()), row.name


@pytest.mark.parametrize("code", TYPES)
def test_no_absurd_fit_is_trusted(audits, code):
    for row in audits[code].rows:
        if doubt(row):
            continue
        alpha, k = row.metrics["alpha"], row.metrics["num_pl_spikes"]
        assert SANE[0] < alpha < SANE[1], (row.name, alpha)
        assert k >= N_MIN
        assert row.metrics["ks_distance"] <= largest_distance(k)
        assert row.status == "OK"


@pytest.mark.parametrize("code", TYPES)
def test_equal_values_have_no_exponent_in_any_type(audits, code):
    rows = {short(row.name): row for row in audits[code].rows}
    for name in ("zeros", "identity", "orthogonal", "one_hot", "permuted_scaled"):
        assert rows[name].status == "DEGENERATE", (name, rows[name].metrics["alpha"])
        assert usable(rows[name], "alpha_hill") is None


@pytest.mark.parametrize("code", TYPES)
def test_ranks_are_those_of_the_products(audits, code):
    rows = {short(row.name): row for row in audits[code].rows}
    for rank_ in (2, 4, 8, 16, 32, 64):
        assert rows[f"rank_{rank_}"].metrics["matrix_rank"] == pytest.approx(rank_, abs=0 if code != "F8_E4M3" else 1)
    for name in ("ones", "row"):
        assert rows[name].metrics["matrix_rank"] <= (1 if code != "F8_E4M3" else 2)


@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16"])
def test_power_laws_stay_trusted(audits, code):
    rows = {short(row.name): row for row in audits[code].rows}
    for exponent in (2.0, 3.0):
        row = rows[f"power_{exponent:g}"]
        assert doubt(row) == "", row.metrics
        assert row.metrics["alpha"] == pytest.approx(exponent, abs=0.6)


@pytest.mark.parametrize("code", TYPES)
def test_means_say_how_many_they_leave_out_and_are_no_absurdity(audits, code):
    audit = audits[code]
    doubted, fits = left_out(audit)
    assert 0 < doubted < fits == len(audit)
    assert SANE[0] < audit.summary()["alpha"] < SANE[1]


@pytest.mark.parametrize("code", TYPES)
def test_gates_pass_no_placeholder_and_read_no_verdict_off_an_untrusted_fit(audits, code):
    audit = audits[code]
    text = 'expect = ["alpha_hill < 11", "alpha in (1, 20)", "median.alpha in (1, 20)", "summary.mean_alpha < 20"]'
    hill, alpha, middle, mean = check(audit, parse_expectations(text)).outcomes
    lost = {row.name for row in audit.rows if "alpha_hill" in row.degenerate}
    assert lost <= {violation.layer for violation in hill.violations}
    gone = {row.name for row in audit.rows if "alpha" in row.degenerate}
    assert {violation.layer for violation in alpha.violations} == gone
    assert "no trusted fit" in alpha.message
    assert middle.passed
    assert mean.passed


@pytest.mark.parametrize("code", [code for code in TYPES if code != "F64"])
def test_rounding_is_no_change_that_is_claimed_of_untrusted_fits(audits, code):
    found = tw.compare(audits["F64"], audits[code])
    before, after = rows_of(audits["F64"]), rows_of(audits[code])
    for layer in found.layers:
        if layer.deltas["alpha"].significant:
            assert not (doubt(before[layer.name]) and doubt(after[layer.name])), layer.name
        hill = layer.deltas["alpha_hill"]
        if "alpha_hill" in before[layer.name].degenerate or "alpha_hill" in after[layer.name].degenerate:
            assert hill.change is None
    for change in found.roles:
        assert abs(change.median_change) < 1e3, change


def test_the_types_are_ranked_by_every_number(audits):
    for by in ("alpha", "alpha_weighted", "alpha_hill", "log_norm", "share_2_4"):
        found = rank(list(audits.values()), by=by)
        assert all(value is None or math.isfinite(value) for model in found.models for value in model.values.values())
    assert any("left out" in note for note in rank(list(audits.values()), by="alpha").notes)


@pytest.mark.parametrize("code", TYPES)
def test_findings_tell_no_absurd_exponent(audits, code):
    found = tw.diagnose(audits[code])
    for finding in found.findings:
        for text in (finding.message, *(item.says for item in finding.evidence)):
            for number in re.findall(r"alpha\w* (\d+(?:\.\d+)?)", text):
                assert float(number) < 1e3, (finding.code, text)
    trained = {name for finding in found.findings if finding.code in ("TW203", "TW204") for name in finding.layers}
    rows = rows_of(audits[code])
    assert all(rows[name].metrics["ks_distance"] <= largest_distance(rows[name].metrics["num_pl_spikes"])
               for name in trained)  # fmt: skip


@pytest.mark.parametrize("code", TYPES)
def test_number_formats_take_them_all(code):
    found = study({name: W.to(TYPES[code]) for name, W in ODD.items()}, ["bf16", "int4", "mxfp4"], use_cache=False)
    assert found.failed == ()
    for layer in found:
        for reading in layer.readings.values():
            assert reading.status in ("OK", "FEW_EIGENVALUES", "DEGENERATE"), (layer.name, reading)
            assert (reading.alpha is None) == (reading.status == "DEGENERATE")
    exact = {short(layer.name): layer.readings["bf16"].status for layer in found}
    for name in ("zeros", "identity", "orthogonal", "one_hot"):
        assert exact[name] == "DEGENERATE"
