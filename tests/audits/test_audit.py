"""The audit as a noun: found by name, taken as a table, summed up; and what `audit()` accepts and refuses."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.audits.prepare import Selection, prepare
from tailwise.audits.run import run
from tailwise.audits.trusted import doubt
from tailwise.audits.weightwatcher import COLUMNS, DIFFERENT
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UsageError
from tailwise.spectrum.metrics.metric import METRICS

RNG = np.random.default_rng(4)
MODEL = {
    "model.embed_tokens.weight": RNG.standard_normal((120, 60)),
    "model.layers.0.self_attn.q_proj.weight": RNG.standard_normal((60, 60)),
    "model.layers.0.mlp.up_proj.weight": RNG.standard_t(2.5, (150, 60)),
    "model.layers.1.self_attn.q_proj.weight": 2.0 * np.eye(60),
    "model.layers.1.mlp.up_proj.weight": RNG.standard_normal((150, 20)),
    "model.layers.1.mlp.up_proj.bias": np.ones(150),
    "model.norm.weight": np.ones(60),
}
FAST = {"use_cache": False, "baseline_replicas": 2}


@pytest.fixture(scope="module")
def audit():
    return tw.audit(MODEL, **FAST)


def test_every_tensor_is_a_row_with_a_status(audit):
    assert {name for row in audit.rows for name in row.tensors} == MODEL.keys()
    statuses = {row.name: row.status for row in audit.rows}
    assert statuses["model.layers.1.self_attn.q_proj"] == "DEGENERATE"
    assert statuses["model.layers.1.mlp.up_proj"] == "FEW_EIGENVALUES"
    assert statuses["model.norm.weight"] == statuses["model.layers.1.mlp.up_proj.bias"] == "NOT_A_MATRIX"
    assert all(row.reason for row in audit.rows if row.status != "OK")


def test_a_layer_is_found_by_its_name_with_or_without_weight(audit):
    layer = audit["model.layers.0.mlp.up_proj"]
    assert layer is audit["model.layers.0.mlp.up_proj.weight"]
    assert "model.layers.0.mlp.up_proj.weight" in audit
    assert "model.layers.0.mlp.up_proj" in audit
    assert "model.layers.0.mlp" not in audit
    assert 3 not in audit
    assert layer.alpha == layer.row.metrics["alpha"]
    assert (layer.spectrum.rows, layer.spectrum.cols, len(layer.spectrum.eigenvalues)) == (150, 60, 60)
    with pytest.raises(AttributeError, match="alhpa"):
        _ = layer.alhpa


def test_an_unknown_name_is_answered_with_near_ones_and_an_unmeasured_one_with_why(audit):
    with pytest.raises(UsageError, match="there is no layer named") as caught:
        audit["model.layers.0.mlp.up_prj"]
    assert "model.layers.0.mlp.up_proj" in caught.value.fix
    with pytest.raises(UsageError, match="was not measured"):
        audit["model.norm.weight"]


def test_the_table_has_a_row_per_measured_matrix_and_all_rows_on_request(audit):
    table = audit.table()
    assert len(table) == len(audit) == 5
    assert len(audit.table(unmeasured=True)) == len(audit.rows) == 7
    assert table["alpha"] == [layer.alpha for layer in audit]
    assert table.column_names[:3] == ["name", "role", "block"]
    assert table.to_dicts()[0]["name"] == "model.embed_tokens"
    with pytest.raises(UsageError, match="did you mean"):
        table["alhpa"]


def test_tables_become_pandas_and_polars_frames_with_the_same_values(audit):
    table = audit.table(unmeasured=True)
    pandas, polars = table.to_pandas(), table.to_polars()
    for frame in (pandas, polars):
        assert list(frame.columns) == table.column_names
        assert list(frame["name"]) == table["name"]
    assert polars["alpha"].to_list() == table["alpha"]
    assert [None if np.isnan(value) else value for value in pandas["alpha"]] == table["alpha"]
    assert table.to_arrow().equals(table.arrow)
    import pyarrow as pa

    assert pa.table(table).equals(table.arrow)  # through the Arrow C stream interface


def test_the_summary_leaves_degenerate_layers_out_of_every_mean(audit):
    summary = audit.summary()
    counted = [layer for layer in audit if layer.row.status != "DEGENERATE"]
    assert len(counted) == len(audit) - 1
    trusted = [layer for layer in counted if not doubt(layer.row)]
    assert 0 < len(trusted) < len(counted)
    assert summary["alpha"] == pytest.approx(np.mean([layer.alpha for layer in trusted]))
    for name in ("alpha_hill", "stable_rank", "singular_entropy"):
        assert summary[name] == pytest.approx(np.mean([layer.row.metrics[name] for layer in counted])), name
    assert audit["model.layers.1.self_attn.q_proj"].alpha_hill == 10.0
    assert summary["alpha_hill"] != pytest.approx(np.mean([layer.alpha_hill for layer in audit]))


def test_an_alpha_hill_of_a_tail_without_spread_enters_no_mean():
    # The largest tenth is equal, the rest is spread: alpha is fitted, alpha_hill is 10.0 for want of a tail.
    values = np.sqrt(np.append(np.geomspace(0.1, 1, 90), np.full(10, 1.5)))
    audit = tw.audit({"good.weight": MODEL["model.embed_tokens.weight"], "tied.weight": np.diag(values)}, **FAST)
    assert audit["tied"].alpha_hill == 10.0
    assert audit.summary()["alpha_hill"] == pytest.approx(audit["good"].alpha_hill)


def test_an_audit_shows_itself(audit):
    assert "5 matrices" in repr(audit)
    assert "2 not measured" in repr(audit)
    html = audit._repr_html_()
    assert html.count("<tr>") == 6
    assert "model.layers.0.mlp.up_proj" in html


def test_weightwatchers_columns_are_its_names_with_our_numbers():
    audit = tw.audit(MODEL, use_cache=False, randomize=1)
    table = audit.weightwatcher()
    details = {
        "layer_id", "name", "longname", "layer_type", "N", "M", "Q", "num_evals", "num_params", "rf", "norm", "alpha",
        "alpha_weighted", "D", "sigma", "xmin", "xmax", "num_pl_spikes", "log_alpha_norm", "log_norm", "stable_rank",
        "log_spectral_norm", "spectral_norm", "lambda_max", "matrix_rank", "rank_loss", "weak_rank_loss", "entropy",
        "sv_max", "sv_min", "detX_num", "detX_val", "num_spikes", "sigma_mp", "mp_softrank", "num_traps",
        "rand_distance", "ww_softrank", "ww_maxdist", "status", "warning",
    }  # fmt: skip
    assert details <= set(table.column_names)
    assert set(COLUMNS) <= set(table.column_names)
    assert set(DIFFERENT) <= set(COLUMNS)
    assert set(COLUMNS.values()) <= set(METRICS)
    for row, layer in zip(table.to_dicts(), audit, strict=True):
        assert row["longname"] == layer.row.name
        assert row["name"] == layer.row.name.rpartition(".")[2]
        for column, metric in COLUMNS.items():
            value = layer.row.metrics[metric]
            assert np.isnan(row[column]) if value is None else row[column] == value, column
        assert row["status"] == ("failed" if layer.alpha is None else "success")


@pytest.mark.parametrize(("alpha", "warning"), [(1.5, "over-trained"), (3.0, ""), (7.0, "under-trained"), (None, "")])
def test_weightwatchers_warning_follows_alpha(audit, alpha, warning):
    from dataclasses import replace

    from tailwise.audits.weightwatcher import weightwatcher_columns

    layer = next(iter(audit))
    row = replace(layer.row, metrics={**layer.row.metrics, "alpha": alpha})
    assert weightwatcher_columns(0, row, layer.spectrum)["warning"] == warning


def test_provenance_says_what_was_done_and_the_fingerprint_what_was_measured(audit):
    found = audit.provenance
    assert found.recipe == tw.Recipe(baseline_replicas=2).to_json()
    assert (found.reused, found.device, found.notes) == (0, "cpu", ())
    assert {"tailwise", "torch", "numpy", "scipy", "python"} <= found.versions.keys()
    same = tw.audit(dict(reversed(MODEL.items())), **FAST)
    assert same.provenance.fingerprint == found.fingerprint
    other = tw.audit({**MODEL, "model.embed_tokens.weight": MODEL["model.embed_tokens.weight"] + 1}, **FAST)
    assert other.provenance.fingerprint != found.fingerprint
    json.dumps(found.to_json())


def test_matrices_are_selected_by_name_and_by_role():
    by_name = tw.audit(MODEL, layers=r"layers\.0\.", **FAST)
    assert [layer.row.name for layer in by_name] == ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    by_role = tw.audit(MODEL, roles=("mlp_up",), **FAST)
    assert {layer.row.role for layer in by_role} == {"mlp_up"}
    both = tw.audit(MODEL, roles=("mlp_up",), layers="0", **FAST)
    assert len(both) == 1
    assert both.provenance.selection == {"layers": "0", "roles": ["mlp_up"]}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"estimater": "ks"}, "no setting named 'estimater'"),
        ({"estimator": "kss"}, "no estimator named 'kss'"),
        ({"hill_estimator": "farms"}, "no estimator named 'farms'"),
        ({"metrics": ("alhpa",)}, "no metric named 'alhpa'"),
        ({"roles": ("mlp_upp",)}, "no role named 'mlp_upp'"),
        ({"layers": "nothing like it"}, "none of the 5 matrices is selected"),
        ({"layers": "("}, "not a regular expression"),
        ({"k_frac": 0.0}, "k_frac"),
        ({"precision": "float16"}, "precision"),
        ({"conv": "round"}, "conv"),
        ({"randomize": -1}, "give zero"),
        ({"device": "abacus"}, "not a device"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read_and_says_what_to_do(settings, what):
    with pytest.raises(UsageError, match=what) as caught:
        tw.audit(MODEL, **{**FAST, **settings})
    assert caught.value.fix
    assert caught.value.exit_code == 2


def test_preparing_reads_no_weight_and_knows_the_cost():
    class Sealed(type(open_checkpoint(MODEL))):
        def read_rows(self, name, start, stop):
            raise AssertionError("a weight was read")

    prepared = prepare(Sealed("sealed", MODEL), selection=Selection(roles=("mlp_up",)))
    assert [source.name for source in prepared.sources] == ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    assert prepared.nbytes == 150 * 80 * 8
    assert prepared.flops == pytest.approx(150 * 60**2 + 4 / 3 * 60**3 + 150 * 20**2 + 4 / 3 * 20**3)
    assert prepared.memory(2) > prepared.memory(1) > 0


def test_named_metrics_switch_on_what_they_need():
    audit = tw.audit(
        {"layer.weight": MODEL["model.embed_tokens.weight"]}, use_cache=False, metrics=["num_traps", "alpha_low"]
    )
    assert list(audit["layer"].row.metrics) == ["alpha_low", "num_traps"]
    assert audit.provenance.recipe["randomize"] == 1
    assert audit.provenance.recipe["bootstrap"] == 200


def test_a_module_a_dict_an_open_checkpoint_and_a_file_give_the_same_numbers(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(60, 40), torch.nn.Linear(40, 50))
    state = {name: value.detach() for name, value in module.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    prepared = open_checkpoint(state)
    audits = [tw.audit(model, **FAST) for model in (module, state, prepared, str(tmp_path / "model.pt"))]
    audits.append(run(prepared, prepare(prepared, tw.Recipe(baseline_replicas=2), tw.RunOptions(use_cache=False))))
    for audit in audits:
        assert [(layer.row.name, layer.row.metrics) for layer in audit] == [
            (layer.row.name, layer.row.metrics) for layer in audits[0]
        ]


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_safetensors_file_is_read_whatever_the_length_of_its_header(length, tmp_path):
    header = json.dumps({"layer.weight": {"dtype": "F64", "shape": [20, 20], "data_offsets": [0, 3200]}})
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header.ljust(length).encode() + RNG.random((20, 20)).tobytes())
    assert len(tw.audit(str(path), **FAST)) == 1
