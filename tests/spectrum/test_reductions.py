"""Ways to the eigenvalues of a symmetric matrix: they agree with LAPACK, in batches and alone, whatever the shape."""

from __future__ import annotations

import math
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers import on_cpu, symmetric, tridiagonal, two_stage
from tailwise.spectrum.solvers.gpu_streams import finish, finish_stream
from tailwise.spectrum.solvers.gram import DenseMatrix, gram
from tailwise.spectrum.solvers.symmetric import MANY, SOLVERS, SolverChoice, candidates, measured, size_class
from tailwise.spectrum.solvers.together import Together

CPU = torch.device("cpu")
REDUCTIONS = ("torch", "torch-singly", "tridiagonal", "two-stage")


def triangles(m: int, count: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Gram matrices (lower triangles) of which the second has rank m // 2 and the third a steep spectrum."""
    W = torch.randn(count, 2 * m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if count > 1:
        W[1, :, : m // 2] = 0
    if count > 2:
        W[2] *= torch.logspace(0, -3, m, dtype=torch.float64)
    return (W.mT @ W).tril().to(dtype)


def exact(batch: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(batch.double(), UPLO="L")


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("m", [1, 2, 3, 31, 32, 33, 64, 65, 66, 130])
def test_every_reduction_agrees_with_lapack(name, m):
    batch = triangles(m)
    known = exact(batch)
    found = SOLVERS[name](batch.clone())
    assert found.shape == (3, m)
    assert ((found - known).abs().amax(1) <= 1e-14 * known[:, -1]).all()
    assert (found.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_large_matrix_to_twelve_digits(name):
    batch = triangles(700, count=1)
    known = exact(batch)
    assert ((SOLVERS[name](batch.clone()) - known).abs() <= 1e-12 * known[:, -1:]).all()


@pytest.mark.parametrize("name", ["tridiagonal", "two-stage"])
def test_float32_stays_within_its_rounding(name):
    batch = triangles(200, dtype=torch.float32)
    known = exact(batch)
    found = SOLVERS[name](batch.clone())
    assert found.dtype is torch.float32
    limit = 4 * math.sqrt(200) * torch.finfo(torch.float32).eps
    assert ((found - known).abs().amax(1) <= limit * known[:, -1]).all()


@pytest.mark.parametrize("name", ["tridiagonal", "two-stage"])
@pytest.mark.parametrize(
    ("dtype", "sizes"), [(torch.float32, (1e-22, 1e-30, 1e27)), (torch.float64, (1e-170, 1e-202, 1e197))]
)
def test_entries_whose_squares_leave_the_type_harm_nothing(name, dtype, sizes):
    scales = torch.tensor(sizes, dtype=torch.float64).view(-1, 1, 1)
    batch = (triangles(70) * scales).to(dtype)
    known = exact(batch)
    found = SOLVERS[name](batch.clone())
    assert ((found - known).abs().amax(1) <= 64 * torch.finfo(dtype).eps * known[:, -1]).all()


@pytest.mark.parametrize("name", ["tridiagonal", "two-stage"])
def test_matrices_that_need_no_reflection(name):
    zero, diagonal = torch.zeros(1, 70, 70, dtype=torch.float64), torch.diag(torch.arange(70.0, 0, -1).double())[None]
    assert SOLVERS[name](zero).eq(0).all()
    assert torch.allclose(SOLVERS[name](diagonal.clone()), torch.arange(1.0, 71).double()[None], rtol=0, atol=1e-12)


def test_the_band_is_similar_to_the_matrix_and_as_wide_as_said():
    batch = triangles(40, count=1)
    band = two_stage.to_band(batch.clone(), width=4)[0]
    full = torch.zeros(40, 40, dtype=torch.float64)
    for index in range(5):
        full += torch.diag(band[index, : 40 - index], -index)
    assert torch.allclose(torch.linalg.eigvalsh(full, UPLO="L"), exact(batch)[0], rtol=0, atol=1e-10)


def test_a_tridiagonal_form_has_the_same_trace_and_norm():
    batch = triangles(50)
    whole = batch + batch.tril(-1).mT
    diagonal, below = tridiagonal.tridiagonalise(batch.clone())
    assert torch.allclose(diagonal.sum(1), whole.diagonal(0, 1, 2).sum(1))
    norm = diagonal.square().sum(1) + 2 * below.square().sum(1)
    assert torch.allclose(norm, whole.square().sum((1, 2)))


def test_lapack_works_without_the_interpreter_lock():
    beats, stop = [], threading.Event()

    def beat() -> None:
        while not stop.is_set():
            beats.append(1)
            stop.wait(0.0005)

    thread = threading.Thread(target=beat)
    thread.start()
    d, e = np.random.default_rng(0).standard_normal((2, 2000))

    def beats_meanwhile() -> int:
        before = len(beats)
        on_cpu._sterf(d, e[1:])
        return len(beats) - before

    # A call that kept the lock would let none pass; a busy machine may let none pass once.
    passed = any(beats_meanwhile() > 1 for _ in range(50))
    stop.set()
    thread.join()
    assert passed


def test_measuring_names_every_candidate_and_a_choice_is_the_fastest(monkeypatch):
    seconds = measured(64, 2, torch.float64, CPU)
    assert list(seconds) == candidates(CPU, 2) == list(REDUCTIONS)
    assert all(0 < value < math.inf for value in seconds.values())
    kept = {}
    monkeypatch.setattr(symmetric, "measured", lambda *_: {"torch": 2.0, "two-stage": 1.0, "cupy": math.inf})
    choice = SolverChoice(kept.get, kept.__setitem__)
    assert choice(triangles(60)) == "two-stage"
    assert kept == {f"cpu torch.float64 64 {MANY}": {"torch": 2.0, "two-stage": 1.0}}
    monkeypatch.setattr(symmetric, "measured", lambda *_: pytest.fail("it was measured already"))
    assert choice(triangles(70)) == SolverChoice(kept.get, kept.__setitem__)(triangles(66)) == "two-stage"


def test_a_solver_that_fails_or_is_wrong_is_never_chosen(monkeypatch, caplog):
    def broken(batch):
        raise RuntimeError("no memory on the device")

    wrong = {"tridiagonal": broken, "two-stage": lambda batch: SOLVERS["torch"](batch) * 1.001}
    monkeypatch.setattr(symmetric, "SOLVERS", {**SOLVERS, **wrong})
    seconds = measured(64, 1, torch.float64, CPU)
    assert seconds["tridiagonal"] == seconds["two-stage"] == math.inf
    assert "cannot be used" in caplog.text
    assert "is off" in caplog.text


@pytest.mark.parametrize(
    "noted",
    [
        {},  # none could be used there
        {"cupy": 0.1},  # is not installed here
        {"torch": "fast"},
        {"another": 0.1},
    ],
)
def test_a_note_of_solvers_that_cannot_run_here_is_measured_again(noted, monkeypatch):
    monkeypatch.setattr(symmetric, "measured", lambda *_: {"torch": 2.0, "two-stage": 1.0})
    assert SolverChoice(lambda _: noted)(triangles(20)) == "two-stage"


def test_of_a_note_the_fastest_solver_that_can_run_here_is_taken(monkeypatch):
    monkeypatch.setattr(symmetric, "measured", lambda *_: pytest.fail("it was measured already"))
    noted = {"torch": 2.0, "cupy": 0.1, "two-stage": 1.0}
    assert SolverChoice(lambda _: noted)(triangles(20)) == "two-stage"


@pytest.mark.parametrize(("m", "named"), [(1, 64), (90, 64), (91, 128), (768, 1024), (3000, 4096), (14336, 4096)])
def test_sizes_are_measured_at_the_nearest_power_of_two(m, named):
    assert size_class(m) == named


def test_cupy_is_given_the_memory_and_gives_it_back(monkeypatch):
    fake = SimpleNamespace(from_dlpack=np.from_dlpack, linalg=SimpleNamespace(eigvalsh=np.linalg.eigvalsh))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    batch = triangles(20)
    assert torch.allclose(SOLVERS["cupy"](batch.clone()), exact(batch))


def test_threads_with_matrices_of_one_size_are_solved_together_and_each_gets_its_own():
    batches = {m: triangles(m, 8, seed=m) for m in (40, 50)}
    busy, queued = threading.Event(), threading.Event()

    def choose(stacked: torch.Tensor) -> str:
        busy.set()
        assert queued.wait(300)
        return "two-stage"

    together = Together(choose)
    work = [(m, index) for index in range(8) for m in batches]
    with ThreadPoolExecutor(len(work)) as pool:
        futures = {item: pool.submit(together, batches[item[0]][item[1]].clone()) for item in work}
        assert busy.wait(300)
        while sum(map(len, together._waiting.values())) < len(work) - 1:
            time.sleep(0.001)
        queued.set()
        for (m, index), future in futures.items():
            assert torch.allclose(future.result(), exact(batches[m])[index], rtol=0, atol=1e-10)
    assert sum(together.batches) == len(work)
    assert max(together.batches) == 8


def test_a_batch_is_no_larger_than_memory_allows():
    together = Together(lambda _: "torch", most_bytes=2 * 8 * 40**2)
    batch, start = triangles(40, 6), threading.Barrier(6)

    def work(index: int) -> torch.Tensor:
        start.wait()
        return together(batch[index].clone())

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, range(6)))
    assert torch.allclose(torch.stack(found), exact(batch))
    assert max(together.batches) <= 2


def test_one_bad_matrix_of_a_batch_is_its_owners_error(monkeypatch):
    def picky(batch: torch.Tensor) -> torch.Tensor:
        if not bool(torch.isfinite(batch).all()):
            raise RuntimeError("not finite")
        return SOLVERS["torch"](batch)

    from tailwise.spectrum.solvers import together as module

    monkeypatch.setattr(module, "SOLVERS", {"picky": picky})
    together = Together(lambda _: "picky")
    good, bad = module._Asked(triangles(5, 1)[0]), module._Asked(torch.full((5, 5), math.nan))
    together._solve([good, bad])
    assert good.values is not None
    assert isinstance(bad.error, RuntimeError)
    with pytest.raises(RuntimeError, match="not finite"):
        together(torch.full((5, 5), math.nan))


def test_a_batch_that_was_too_large_is_let_go_before_its_matrices_are_tried_alone(monkeypatch):
    taken = []

    def small(batch: torch.Tensor) -> torch.Tensor:
        held = [one for one in taken if one() is not None]
        taken.append(weakref.ref(batch))
        if len(batch) > 1 or held:
            raise torch.OutOfMemoryError("the device is full")
        return SOLVERS["torch"](batch)

    from tailwise.spectrum.solvers import together as module

    monkeypatch.setattr(module, "SOLVERS", {"small": small})
    batch = [module._Asked(triangle) for triangle in triangles(5)]
    Together(lambda _: "small")._solve(batch)
    assert [asked.error for asked in batch] == [None, None, None]


@pytest.mark.parametrize("shape", [(300, 90), (90, 300)])
def test_a_spectrum_is_the_same_whichever_way_it_is_reduced(shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    known = solve(W)
    for name in ("tridiagonal", "two-stage"):
        found = solve(W, reduce=Together(lambda _, name=name: name))
        assert np.abs(found.eigenvalues - known.eigenvalues).max() <= known.error_bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1500, 70), (70, 1500), (40, 40)])
def test_products_of_halves_are_those_of_their_conversion_to_float32(dtype, shape):
    W = DenseMatrix(torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype))
    exact_gram = gram(W, torch.float64, CPU).tril()
    found = gram(W, torch.float32, CPU, halves=True).tril()
    assert torch.allclose(found, gram(W, torch.float32, CPU, halves=False).tril(), rtol=1e-6, atol=1e-4)
    assert (found - exact_gram).abs().max() <= 4 * math.sqrt(max(shape)) * 2**-24 * exact_gram.diagonal().max()


def test_a_gpu_is_waited_for_and_a_cpu_is_not(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append("all"))
    stream = SimpleNamespace(synchronize=lambda: seen.append("mine"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    for device in ("cuda:0", "cpu"):
        finish_stream(torch.device(device))
        finish(torch.device(device))
    assert seen == ["mine", "all"]
