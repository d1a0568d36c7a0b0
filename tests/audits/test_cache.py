"""Nothing unchanged is computed twice, everything changed is, and a broken cache costs time and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.audits import cache as cache_module
from tailwise.audits.cache import Cache, default_folder, key_of
from tailwise.audits.prepare import prepare
from tailwise.audits.run import run
from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.spectrum.spectrum import Spectrum

RNG = np.random.default_rng(2)
MODEL = {f"layers.{i}.mlp.up_proj.weight": RNG.standard_normal((40 + i, 30)) for i in range(5)}
VOLATILE = ["reused", "seconds"]


def numbers(audit: tw.Audit):
    return audit.table(unmeasured=True).arrow.drop_columns(VOLATILE)


def audit(model=None, **settings) -> tw.Audit:
    return tw.audit(model or MODEL, baseline_replicas=2, **settings)


def kept(kind: str) -> list[Path]:
    return sorted(path for path in (default_folder() / kind).rglob("*") if path.is_file())


def test_a_second_audit_reuses_every_spectrum_and_gives_the_same_table():
    first, second = audit(), audit()
    assert (first.provenance.reused, second.provenance.reused) == (0, 5)
    assert [row.reused for row in second.rows] == [True] * 5
    assert (first.provenance.bytes_read, second.provenance.bytes_read) == (sum(w.nbytes for w in MODEL.values()), 0)
    assert numbers(first).equals(numbers(second))
    assert all(
        one.spectrum.eigenvalues.tobytes() == two.spectrum.eigenvalues.tobytes()
        for one, two in zip(first, second, strict=True)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "mid"},
        {"k_frac": 0.3},
        {"hill_estimator": "top_outside"},
        {"bootstrap": 5},
        {"metrics": ("alpha_truncated",)},
        {"baseline_replicas": 3},
    ],
)
def test_another_way_to_read_the_spectra_reuses_them_all(settings):
    audit()
    fresh = tw.audit(MODEL, use_cache=False, **{"baseline_replicas": 2, **settings})
    again = tw.audit(MODEL, **{"baseline_replicas": 2, **settings})
    assert again.provenance.reused == 5
    assert numbers(again).equals(numbers(fresh))


@pytest.mark.parametrize(
    "settings", [{"precision": "float32"}, {"randomize": 1}, {"estimator": "farms", "farms_window": 20}]
)
def test_what_needs_other_spectra_does_not_pass_the_kept_ones_off_as_them(settings):
    audit()
    assert audit(**settings).provenance.reused == 0
    assert audit(**settings).provenance.reused == 5
    assert numbers(audit(**settings)).equals(numbers(audit(use_cache=False, **settings)))


@pytest.mark.parametrize("change", [{"seed": 1}, {"randomize": 3}])
def test_other_permutations_are_computed_anew(change):
    audit(randomize=2)
    assert audit(**{"randomize": 2, **change}).provenance.reused == 0
    assert audit(randomize=1).provenance.reused == 5


def test_a_model_with_one_changed_tensor_recomputes_exactly_that_one():
    audit()
    name = "layers.3.mlp.up_proj.weight"
    changed = {**MODEL, name: MODEL[name].copy()}
    changed[name][0, 0] = np.nextafter(changed[name][0, 0], 9)
    second = audit(changed)
    assert [row.name for row in second.rows if not row.reused] == ["layers.3.mlp.up_proj"]
    assert second.provenance.reused == 4
    assert numbers(second).equals(numbers(audit(changed, use_cache=False)))


def test_a_spectrum_belongs_to_the_content_and_not_to_the_name():
    audit()
    renamed = {name.replace("layers", "blocks"): weight for name, weight in MODEL.items()}
    assert audit(renamed).provenance.reused == 5


@pytest.mark.parametrize(
    "other", [lambda w: w.astype(np.float32), lambda w: np.ascontiguousarray(w.T), lambda w: w.reshape(30, -1)]
)
def test_the_same_bytes_in_another_shape_or_type_are_other_content(other):
    weights = RNG.integers(-3, 3, (40, 30)).astype(np.float64)
    audit({"layer.weight": weights})
    assert audit({"layer.weight": other(weights)}).provenance.reused == 0


def test_the_same_bytes_read_as_another_type_are_other_content():
    half = torch.from_numpy(RNG.standard_normal((40, 30))).half()
    audit({"layer.weight": half})
    again = audit({"layer.weight": half.view(torch.bfloat16)})
    assert again.provenance.reused == 0
    assert again["layer"].log_norm == pytest.approx(float((half.view(torch.bfloat16).double() ** 2).sum().log10()))


def test_of_a_rewritten_file_only_the_changed_tensor_is_computed(tmp_path):
    def write(model):
        save_file({name: torch.from_numpy(weight) for name, weight in model.items()}, tmp_path / "model.safetensors")

    write(MODEL)
    first = audit(str(tmp_path))
    write(MODEL)
    assert audit(str(tmp_path)).provenance.reused == 5
    assert audit(str(tmp_path)).provenance.fingerprint == first.provenance.fingerprint
    write({**MODEL, "layers.0.mlp.up_proj.weight": MODEL["layers.0.mlp.up_proj.weight"] + 1})
    second = audit(str(tmp_path))
    assert [row.name for row in second.rows if not row.reused] == ["layers.0.mlp.up_proj"]
    assert second.provenance.fingerprint != first.provenance.fingerprint


class Counted(Checkpoint):
    """Tensors with an identity, that say how many rows of them were read."""

    uri, format, config, metadata = "counted", "memory", {}, {}

    def __init__(self):
        self.tensors = {n: TensorSpec(n, "F64", w.shape, w.nbytes) for n, w in MODEL.items()}
        self.read_count = 0

    def read_rows(self, name, start, stop):
        self.read_count += stop - start
        return torch.from_numpy(MODEL[name][start:stop])

    def identity(self, name):
        return f"counted {name}"


def test_a_tensor_of_known_identity_is_not_read_at_all():
    first, second = Counted(), Counted()
    one, two = (run(checkpoint, prepare(checkpoint)) for checkpoint in (first, second))
    # Small matrices are held between hashing and solving, so each row is read once.
    assert first.read_count == sum(len(weight) for weight in MODEL.values())
    assert second.read_count == 0
    assert numbers(one).equals(numbers(two))


@pytest.mark.parametrize(
    "damage", [lambda raw: b"", lambda raw: b"garbage" * 20, lambda raw: b"{]", lambda raw: bytes(len(raw))]
)
def test_damaged_entries_are_computed_again(damage):
    first = audit()
    for kind in ("spectra", "digests", "baselines"):
        for path in kept(kind):
            path.write_bytes(damage(path.read_bytes()))
    second = audit()
    assert second.provenance.reused == 0
    assert numbers(first).equals(numbers(second))
    assert audit().provenance.reused == 5


def test_a_flipped_byte_in_a_kept_spectrum_gives_the_same_numbers_or_none(tmp_path):
    cache, spectrum = Cache(tmp_path), Spectrum(np.sort(RNG.random(12)), 12, 20, error_bound=1e-15)
    cache.keep_spectrum("key", spectrum)
    path = next(tmp_path.rglob("*.npz"))
    whole = path.read_bytes()
    lost = 0
    for place in range(4, whole.index(b"PK\x01\x02")):  # beyond lies zip's directory: see the next test
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        found = cache.spectrum("key")
        lost += found is None
        assert found is None or found.eigenvalues.tobytes() == spectrum.eigenvalues.tobytes()
    assert lost > 200


def test_a_damaged_directory_of_a_kept_spectrum_is_computed_again():
    first = audit()
    for path in kept("spectra"):
        whole = bytearray(path.read_bytes())
        whole[whole.index(b"PK\x01\x02") + 10] = 99  # the compression method
        path.write_bytes(bytes(whole))
    assert numbers(audit()).equals(numbers(first))


@pytest.mark.parametrize(
    "value",
    [
        '{"alpha": 3, "alpha_hill": 4, "singular_entropy": 5}',
        '{"alpha": ["a", "b"], "alpha_hill": [1, 2], "singular_entropy": [1, 2]}',
    ],
)
def test_a_kept_baseline_that_is_no_baseline_is_computed_again(value):
    first = audit()
    for path in kept("baselines"):
        path.write_text(value)
    assert numbers(audit()).equals(numbers(first))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_truncated_spectrum_is_computed_again_and_its_file_closed(monkeypatch):
    first = audit()
    for path in kept("spectra"):
        path.write_bytes(path.read_bytes()[:200])
    left_open = []
    monkeypatch.setattr("sys.unraisablehook", lambda event: left_open.append(event.exc_value))
    assert numbers(audit()).equals(numbers(first))
    assert not left_open


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["tempfile.mkstemp", "Path.replace"])
def test_a_full_cache_gives_a_note_and_a_correct_audit(where, monkeypatch):
    reference = audit(use_cache=False)
    assert reference.provenance.notes == ()
    monkeypatch.setattr(f"tailwise.audits.cache.{where}", full_disk)
    found = audit()
    assert numbers(found).equals(numbers(reference))
    assert len(found.provenance.notes) == 1
    assert "No space left on device" in found.provenance.notes[0]
    assert kept("spectra") == []  # neither half a file nor a temporary one


def test_a_cache_folder_that_cannot_be_one_gives_a_note_and_a_correct_audit(tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = audit(cache_dir=tmp_path / "file")
    assert numbers(found).equals(numbers(audit(use_cache=False)))
    assert "could not be written" in found.provenance.notes[0]


def test_without_a_cache_nothing_is_written_and_nothing_reused():
    assert audit(use_cache=False).provenance.reused == 0
    assert not default_folder().exists()


def test_the_folder_is_the_one_asked_for_then_the_environments_then_the_users(tmp_path, monkeypatch):
    audit(cache_dir=tmp_path / "mine")
    assert list((tmp_path / "mine" / "spectra").rglob("*.npz"))
    assert not default_folder().exists()
    monkeypatch.setenv("TAILWISE_CACHE", "~/somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / "somewhere"
    monkeypatch.delenv("TAILWISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "tailwise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == tmp_path / ".cache" / "tailwise"


def test_a_new_engine_leaves_the_entries_of_the_old_one_alone(monkeypatch):
    audit()
    old = key_of("weights", "digest")
    monkeypatch.setattr(cache_module, "ENGINE", cache_module.ENGINE + 1)
    assert key_of("weights", "digest") != old
    assert audit().provenance.reused == 0


def test_on_a_gpu_matrices_are_reduced_together_and_what_was_measured_is_kept(tmp_path, monkeypatch):
    from tailwise.audits.cache import Baselines
    from tailwise.audits.work import Worker
    from tailwise.spectrum.solvers import symmetric

    cache = Cache(tmp_path)
    worker = Worker(tw.open_checkpoint(MODEL), tw.Recipe(), "cuda", cache, Baselines(cache))
    monkeypatch.setattr(symmetric, "measured", lambda *_: {"torch": 2.0, "two-stage": 1.0})
    triangle = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
    assert worker._reduce is not None
    assert worker._reduce(triangle.clone()).tolist() == pytest.approx(list(range(1, 9)))
    monkeypatch.setattr(symmetric, "measured", lambda *_: pytest.fail("it was measured already"))
    again = Worker(worker.checkpoint, tw.Recipe(), "cuda", cache, Baselines(cache))
    assert again._reduce(triangle.clone()).tolist() == pytest.approx(list(range(1, 9)))
    assert Worker(worker.checkpoint, tw.Recipe(), "cpu", cache, Baselines(cache))._reduce is None


def test_a_far_worker_without_the_folder_measures_solvers_once_for_all_its_matrices(tmp_path, monkeypatch):
    from safetensors.numpy import save_file as save

    from inline import Inline
    from tailwise.audits import on_engine as far
    from tailwise.audits.work import Worker
    from tailwise.spectrum.solvers import symmetric

    save(
        {f"{i}.weight": np.random.default_rng(i).standard_normal((70, 64)) for i in range(3)},
        tmp_path / "a.safetensors",
    )
    times, near = [], Worker._solve_one
    monkeypatch.setattr(symmetric, "measured", lambda *_: times.append(1) or {"torch": 1.0})
    monkeypatch.setattr(far, "_SEEN", {})

    def as_on_a_gpu(worker, matrix):
        worker.device = "cuda"
        worker.__dict__["_reduce"] = worker._reduce
        worker.device = "cpu"
        return near(worker, matrix)

    monkeypatch.setattr(Worker, "_solve_one", as_on_a_gpu)
    assert len(tw.audit(tmp_path, executor=Inline(), workers=1, use_cache=False)) == 3
    assert len(times) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_forked_meanwhile_does_not_go_on_holding_a_lock(tmp_path):
    import fcntl

    reader, writer = os.pipe()
    with Cache(tmp_path).alone("k"):
        waiting = (tmp_path / "locks" / "k").open("rb")
        child = os.fork()
        if child == 0:  # pragma: no cover - in another process
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        waiting.close()
        os.close(reader)
        os.close(writer)
        os.waitpid(child, 0)
