"""TorchScript archives: the tensors come back, and no code of the archive is compiled or run."""

from __future__ import annotations

import pickle
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 8, 3)
        self.layers = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 12))
        self.tied = self.layers[0]
        self.register_buffer("mean", torch.zeros(12).double())

    def forward(self, x):
        return self.layers(x) + self.mean.float()


@pytest.fixture(scope="module", params=["scripted", "traced"])
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path_factory.mktemp("script") / "net.pt"
    made = torch.jit.script(net) if request.param == "scripted" else torch.jit.trace(net, torch.zeros(2, 12))
    torch.jit.save(made, path)
    return path, made.state_dict()


def test_the_tensors_come_back(saved):
    path, state = saved
    opened = open_checkpoint(path)
    assert opened.tensors.keys() >= {name for name in state if not name.startswith("tied")}
    for name in opened.tensors.keys() & state.keys():
        assert torch.equal(opened.read(name), state[name])
        assert opened.tensors[name].shape == state[name].shape
    assert opened.read_rows("layers.0.weight", 2, 5).equal(state["layers.0.weight"][2:5])


def test_it_measures_as_the_module(saved):
    path, state = saved
    audit = tw.audit(path)
    top = torch.linalg.svdvals(state["layers.0.weight"].double())[0] ** 2
    assert audit["layers.0"].spectrum.eigenvalues.max() == pytest.approx(float(top))


def test_a_real_archive_holds_what_torch_loads_of_it():
    spec = find_spec("silero_vad")
    if spec is None or spec.origin is None:
        pytest.skip("silero-vad is not there")
    path = Path(spec.origin).parent / "data" / "silero_vad.jit"
    state = torch.jit.load(str(path), map_location="cpu").state_dict()
    opened = open_checkpoint(path)
    assert state.keys() <= opened.tensors.keys()
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in state.items())


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


def rewritten(path, target, changes):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = next((data for end, data in changes.items() if name.endswith(end)), None)
            new.writestr(name, old.read(name) if data is None else data)
    return target


def test_code_never_runs(saved, tmp_path):
    mark = tmp_path / "ran"
    evil = rewritten(saved[0], tmp_path / "m.pt", {"/data.pkl": pickle.dumps({"w": Evil(mark)}, protocol=2)})
    with pytest.raises(UnreadableError):
        open_checkpoint(evil)
    broken = rewritten(saved[0], tmp_path / "n.pt", {".py": b"raise SystemExit(3)"})
    assert torch.equal(open_checkpoint(broken).read("layers.2.weight"), saved[1]["layers.2.weight"])
    assert not mark.exists()


@pytest.mark.parametrize("changes", [{"/data/0": b"short"}, {"/data.pkl": b"\x80\x02."}, {"/data.pkl": b""}])
def test_damaged_archives(saved, tmp_path, changes):
    with pytest.raises(UnreadableError):
        open_checkpoint(rewritten(saved[0], tmp_path / "m.pt", changes))
