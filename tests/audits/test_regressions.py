"""Faults that were found once, each with what shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.audits import work
from tailwise.checkpoints.open import open_checkpoint
from tailwise.spectrum.power_law import TailOptions, fit_tail
from tailwise.spectrum.solve import solve

RNG = np.random.default_rng(0)


def weights(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (90, 60)), generator=torch.Generator().manual_seed(seed))


def test_a_file_put_in_place_of_another_with_its_size_and_time_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    for seed in (1, 2):
        staged = tmp_path / "staged"
        save_file({"w.weight": weights(seed)}, staged)
        os.utime(staged, (1, 1))
        staged.replace(path)
        found = tw.audit(path)
        assert found["w"].alpha_hill == tw.alpha_hill(weights(seed))


def test_a_file_that_changes_during_an_audit_is_a_row_that_says_so(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_file({"w.weight": weights(1)}, path)
    monkeypatch.setattr(work, "HOLD_BYTES", 0)
    with open_checkpoint(path) as checkpoint:
        before = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(len(before) - 4)
            file.write(b"\0\0\0\0")
        os.utime(path, (5, 5))
        row = tw.audit(checkpoint).rows[0]
    assert row.status == "UNREADABLE"
    assert "has changed" in row.reason


def test_a_float32_tail_holds_nothing_below_the_error_bound():
    low_rank = torch.from_numpy(RNG.standard_normal((256, 32)) @ RNG.standard_normal((32, 256)))
    audit = tw.audit({"w.weight": low_rank}, precision="float32", estimator="mid", use_cache=False)
    row = audit["w"].row
    assert row.metrics["lambda_min"] > row.error_bound
    assert row.status == "FEW_EIGENVALUES"
    exact = tw.audit({"w.weight": low_rank}, estimator="mid", use_cache=False)["w"].row
    assert row.metrics["alpha"] == pytest.approx(exact.metrics["alpha"], rel=1e-3)


def test_a_floor_takes_what_is_below_it_for_zero():
    values = np.sort(RNG.pareto(1.5, 300) + 1)
    padded = np.concatenate([np.full(500, 1e-3), values])
    assert fit_tail(padded, "mid", TailOptions(floor=0.01)).alpha == fit_tail(values, "mid").alpha


def test_windows_are_not_counted_against_the_whole_matrix():
    row = tw.audit({"w.weight": weights(3, 400, 300)}, estimator="farms", randomize=1, use_cache=False)["w"].row
    assert row.metrics["detX_delta"] is None
    assert row.metrics["alpha_permuted"] is None
    assert row.metrics["num_pl_spikes"] == pytest.approx(15 * 128 / 2, abs=1)


def test_a_config_with_infinity_makes_json_all_the_same(tmp_path):
    save_file({"w.weight": weights(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "eps": NaN}')
    from tailwise.report.output_files import to_json

    assert '"inf"' in to_json(tw.audit(tmp_path, use_cache=False))


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_error_bound_holds_for_tall_and_narrow_matrices_of_one_sign(precision):
    tall = 0.1 + 1e-3 * RNG.standard_normal((600_000, 8))
    reference = np.linalg.eigvalsh((tall.T.astype(np.longdouble) @ tall.astype(np.longdouble)).astype(np.float64))
    found = solve(torch.from_numpy(tall), precision=precision)
    assert np.max(np.abs(found.eigenvalues - reference)) <= found.error_bound


def test_held_columns_do_not_keep_the_whole_tensor_alive(tmp_path):
    save_file({"conv.weight": weights(1, 64, 64, 3, 3)}, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        sources, _ = work_sources(checkpoint)
        matrix = work.HashedMatrix(next(iter(work.load(sources[0], checkpoint))), hold=True)
        assert matrix.digest
        for block in matrix.row_blocks(1 << 20):
            assert block.untyped_storage().nbytes() <= 2 * block.numel() * block.element_size()


def work_sources(checkpoint):
    from tailwise.checkpoints.matrices import group

    return group(checkpoint, conv="pooled", min_evals=8)


def test_strings_are_taken_for_one_metric_and_one_role():
    audit = tw.audit({"w.weight": weights(1)}, metrics="stable_rank", roles="other", use_cache=False)
    assert list(audit["w"].row.metrics) == ["stable_rank"]


@pytest.mark.parametrize("setting", [{"seed": -1}, {"farms_windows": 0}, {"min_evals": 0}, {"bootstrap": -3}])
def test_settings_out_of_range_are_refused_at_once(setting):
    with pytest.raises(tw.UsageError, match=next(iter(setting))):
        tw.audit({"w.weight": weights(1)}, **setting)


def test_names_that_would_collide_or_cannot_be_printed_are_refused():
    with pytest.raises(tw.UsageError, match="two arrays"):
        tw.audit({"a": {"b": weights(1)}, "a.b": weights(2)})
    for name in ("a\nb", "\ud800"):
        with pytest.raises(tw.UsageError, match="cannot be printed"):
            tw.audit({name: weights(1)})


@pytest.mark.parametrize(
    "wrong", [torch.randn(9, 9, dtype=torch.complex64), torch.empty(9, 9, device="meta"), "model", torch.randn(5)]
)
def test_what_is_no_matrix_is_one_clear_error(wrong):
    with pytest.raises(tw.TailwiseError):
        tw.alpha_hill(wrong)


def test_arrays_of_any_stride_and_byte_order_are_taken():
    plain = RNG.standard_normal((40, 30))
    for array in (plain[::-1], plain.astype(">f8"), plain.T):
        assert tw.stable_rank(array) == pytest.approx(tw.stable_rank(plain))


def test_a_folder_that_is_its_own_file_system_can_hold_an_audit(tmp_path, monkeypatch):
    audit = tw.audit({"w.weight": weights(1)}, use_cache=False)
    target = tmp_path / "mount"
    target.mkdir()
    rename = Path.replace

    def within_one_device(self, other):
        if (target in self.parents) != (target in Path(other).parents):
            raise OSError(18, "Invalid cross-device link")
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", within_one_device)
    audit.save(target)
    assert len(tw.Audit.load(target)) == 1
    assert sorted(path.name for path in target.iterdir()) == ["layers.parquet", "provenance.json", "spectra.parquet"]


def test_an_exclusive_save_never_replaces(tmp_path):
    audit = tw.audit({"w.weight": weights(1)}, use_cache=False)
    audit.save(tmp_path / "x.audit", exclusive=True)
    with pytest.raises(FileExistsError):
        audit.save(tmp_path / "x.audit", exclusive=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.audit"]


def test_a_closed_pipe_costs_no_audit(tmp_path):
    save_file({f"l.{i}.weight": weights(i) for i in range(4)}, tmp_path / "m.safetensors")
    command = f"{sys.executable} -m tailwise audit m.safetensors | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(tw.Audit.load(tmp_path / "m.audit")) == 4


def test_output_that_cannot_be_written_is_one_message(tmp_path):
    save_file({"l.weight": weights(1)}, tmp_path / "m.safetensors")
    command = f"{sys.executable} -m tailwise audit m.safetensors --json > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
