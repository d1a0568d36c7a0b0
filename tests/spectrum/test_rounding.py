"""What the stored type leaves: equal values are equal, and directions of rounding are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.spectrum.trust import UNITS, edge, unit_of

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n, m, seed=0):
    return torch.linalg.qr(normal(n, m, seed=seed))[0]


def row_of(W, code):
    return next(iter(tw.audit({"w.weight": W.to(TYPES[code])}, use_cache=False))).row


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("shape", [(256, 256), (512, 128)])
def test_an_orthogonal_matrix_has_no_exponent_in_any_type(code, shape):
    row = row_of(orthogonal(*shape), code)
    assert row.status == "DEGENERATE"
    assert row.metrics["alpha"] is None
    assert set(row.degenerate) == {"alpha", "alpha_hill"}


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("rank", [2, 8, 32, 64])
def test_a_product_of_few_directions_has_their_number_as_its_rank(code, rank):
    W = normal(256, rank, seed=1) @ normal(rank, 300, seed=2) / 16
    row = row_of(W, code)
    assert row.metrics["matrix_rank"] == rank
    assert row.metrics["rank_loss"] == 256 - rank


@pytest.mark.parametrize(("n", "m", "rank"), [(300, 256, 64), (512, 256, 128), (160, 96, 2)])
def test_a_product_that_was_computed_in_float32_has_no_more(n, m, rank):
    W = normal(n, rank, seed=1).float() @ normal(rank, m, seed=2).float()
    assert row_of(W, "F32").metrics["matrix_rank"] == rank
    scaled = (normal(n, rank, seed=1) * torch.logspace(0, -1, rank)).float() @ normal(rank, m, seed=2).float()
    assert row_of(scaled, "F32").metrics["matrix_rank"] == rank


def test_few_directions_have_no_slope_in_the_errors_below_them_and_no_more_spikes():
    for rank in (1, 4):
        W = normal(160, rank, seed=1).float() @ normal(rank, 96, seed=2).float()
        row = row_of(W, "F32")
        assert row.metrics["alpha_hill"] is None
        assert row.metrics["num_spikes"] == rank


@pytest.mark.parametrize(("n", "m"), [(64, 64), (128, 384), (512, 512)])
def test_an_orthogonal_matrix_that_was_computed_in_float32_has_no_exponent(n, m):
    W = torch.nn.init.orthogonal_(torch.empty(n, m), generator=torch.Generator().manual_seed(0))
    for code in ("F32", "BF16"):
        assert row_of(W, code).status == "DEGENERATE"


def test_a_gru_with_orthogonal_weights_has_no_mean_exponent():
    torch.manual_seed(0)
    gru = torch.nn.GRU(96, 96)
    for weight in (gru.weight_ih_l0, gru.weight_hh_l0):
        for part in weight.data.split(96):
            torch.nn.init.orthogonal_(part)
    audit = tw.audit(gru, use_cache=False)
    assert [row.status for row in audit.rows if row.metrics] == ["DEGENERATE"] * 6
    assert audit.summary().get("alpha") is None
    assert not [finding for finding in tw.diagnose(audit).findings if "alpha" in finding.message]


@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16"])
def test_noise_of_full_rank_keeps_nearly_all_of_it(code):
    assert row_of(normal(256, 300), code).metrics["matrix_rank"] == 256
    assert row_of(normal(256, 256), code).metrics["matrix_rank"] >= 254


def test_few_directions_above_rounding_give_no_verdict():
    W = normal(256, 32, seed=1) @ normal(32, 300, seed=2) / 16
    row = row_of(W, "F32")
    assert row.status == "FEW_EIGENVALUES"
    assert "32 eigenvalues above zero" in row.reason


def test_rank_loss_is_found_in_what_float32_has_rounded():
    W = normal(256, 64, seed=1) @ normal(64, 300, seed=2) / 16
    found = tw.diagnose(tw.audit({"layers.0.mlp.up_proj.weight": W.float()}, use_cache=False))
    assert "TW603" in {finding.code for finding in found.findings}


def test_the_table_in_weightwatchers_format_keeps_the_epsilon_of_float64():
    W = (normal(256, 64, seed=1) @ normal(64, 300, seed=2) / 16).float()
    audit = tw.audit({"w.weight": W}, use_cache=False)
    assert audit.weightwatcher()["matrix_rank"] == [np.linalg.matrix_rank(W.double().numpy())]
    assert audit["w"].matrix_rank == 64


@pytest.mark.parametrize("code", ["F32", "F16", "BF16", "F8_E4M3"])
def test_the_edge_is_that_of_the_rounding_itself(code):
    W = normal(400, 200)
    rounded = W.to(TYPES[code]).double()
    found = tw.audit({"w.weight": W}, use_cache=False)["w"].spectrum
    assert 0.6 < float(torch.linalg.norm(rounded - W, 2)) / edge(found, UNITS[code]) < 1.0


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [("F32", 2.0**-24), ("bf16", 2.0**-8), ("GGUF_Q4_K", 2.5 / 16), ("GPTQ_INT4", 2.5 / 16), ("BNB_NF4", 2.5 / 16),
     ("CT_FLOAT8", 2.0**-4), ("AO_I8", 2.5 / 256), ("AO_NVFP4", 2.5 / 16), ("GGUF_IQ2_XS", 2.5 / 4), ("?", 2.0**-53)],
)  # fmt: skip
def test_units_of_stored_types(dtype, unit):
    assert unit_of(dtype) == unit
