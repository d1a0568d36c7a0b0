"""Training checkpoints: moments are never weights, averages are asked for, and refused files have a way out."""

from __future__ import annotations

import argparse
import importlib
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.audits.audit import Audit
from tailwise.checkpoints.formats.saved import find_tensors
from tailwise.checkpoints.layout import averaged_prefixes
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UnsafeError, UsageError

W = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
E = W + 1


@pytest.mark.parametrize(
    ("saved", "average"),
    [
        ({"state_dict": {"w": W}, "state_dict_ema": {"w": E}}, "state_dict_ema"),
        ({"state_dict": {"w": W}, "ema_state_dict": {"w": E}}, "ema_state_dict"),
        ({"model": {"w": W}, "model_ema": {"w": E}, "epoch": 3}, "model_ema"),
        ({"model": {"w": W}, "ema": {"module": {"w": E}, "updates": 7}}, "ema"),
        ({"model": {"w": W}, "ema": {"shadow": {"w": E}, "decay": 0.9}}, "ema"),
        ({"params": {"w": W}, "params_ema": {"w": E}}, "params_ema"),
        ({"net": {"w": W}, "net_ema": {"w": E}}, "net_ema"),
        ({"student": {"w": W}, "teacher": {"w": E}}, "teacher"),
        ({"encoder": {"w": W}, "target_encoder": {"w": E}}, "target_encoder"),
    ],
)
def test_weights_are_taken_before_their_average_which_can_be_asked_for(tmp_path, saved, average):
    torch.save({**saved, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "m.pt")
    plain = open_checkpoint(tmp_path / "m.pt")
    assert plain.read("w").equal(W)
    assert plain.tensors.keys() == {"w"}
    assert any(average in note and "--part" in note for note in plain.notes)
    asked = open_checkpoint(tmp_path / "m.pt", part=average)
    assert asked.read("w").equal(E)
    assert asked.tensors.keys() == {"w"}
    assert asked.identity("w") != plain.identity("w")


def test_two_networks_beside_the_average_of_one():
    found = find_tensors(
        {"g": {"w": W}, "d": {"w": W}, "g_ema": {"w": E}, "g_optim": {"state": {}, "param_groups": []}}
    )
    assert found.tensors.keys() == {"g.w", "d.w"}
    assert find_tensors({"g": {"w": W}, "d": {"w": W}, "g_ema": {"w": E}}, "g_ema").tensors["w"].equal(E)
    assert find_tensors({"g": {"w": W}, "d": {"v": W}, "g_ema": {"w": E}}, "d").tensors.keys() == {"v"}


def test_an_average_alone_is_taken_and_said(tmp_path):
    torch.save({"params_ema": {"w": E}}, tmp_path / "m.pt")
    opened = open_checkpoint(tmp_path / "m.pt")
    assert opened.read("w").equal(E)
    assert "only averaged weights" in opened.notes[0]


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_flat_average_is_left_out_by_its_prefix(tmp_path, kind):
    tensors = {"model.a.weight": W, "model.b.weight": W + 2, "model_ema.aweight": E, "model_ema.bweight": E + 2}
    path = tmp_path / "m"
    save_file(tensors, path) if kind == "safetensors" else torch.save({"state_dict": tensors}, path)
    opened = open_checkpoint(path)
    assert opened.tensors.keys() == {"model.a.weight", "model.b.weight"}
    assert "model_ema" in opened.notes[0]
    assert open_checkpoint(path, part="model_ema").tensors.keys() == {"model_ema.aweight", "model_ema.bweight"}
    assert open_checkpoint(path, part="model").tensors.keys() == {"model.a.weight", "model.b.weight"}


@pytest.mark.parametrize(
    "names", [["ema.w"], ["ema.a", "ema.b", "ema.c", "head.w"], ["x.ema.w", "x.w"], ["schema.w", "w"]]
)
def test_names_that_only_look_like_an_average_stay(names):
    assert averaged_prefixes(names) == []


def test_what_is_left_out_is_said(tmp_path):
    optimizer = torch.optim.Adam([torch.nn.Parameter(W.clone())])
    optimizer.param_groups[0]["params"][0].grad = W
    optimizer.step()
    state = optimizer.state_dict()
    torch.save({"generator": {"w": W}, "mpd": {"w": E}, "optim_g": state, "optim_d": [state]}, tmp_path / "m.pt")
    opened = open_checkpoint(tmp_path / "m.pt")
    assert opened.tensors.keys() == {"generator.w", "mpd.w"}
    assert "optim_g, optim_d" in opened.notes[0]


def test_what_stands_beside_the_model_is_said_and_can_be_asked_for(tmp_path):
    torch.save({"model": {"w": W}, "head": {"v": E}}, tmp_path / "m.pt")
    opened = open_checkpoint(tmp_path / "m.pt")
    assert opened.tensors.keys() == {"w"}
    assert "not read, are head" in opened.notes[0]
    assert open_checkpoint(tmp_path / "m.pt", part="head").tensors.keys() == {"v"}


def test_an_unknown_part_lists_those_there_are(tmp_path):
    torch.save({"model": {"a.w": W}, "model_ema": {"a.w": E}}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"no part named 'nothing'[\s\S]*model_ema"):
        open_checkpoint(tmp_path / "m.pt", part="nothing")


def test_an_audit_keeps_the_part_and_what_was_left_out(tmp_path):
    torch.save({"model": {"w": W}, "model_ema": {"w": E}}, tmp_path / "m.pt")
    plain, average = tw.audit(tmp_path / "m.pt"), tw.audit(tmp_path / "m.pt", part="model_ema")
    assert "model_ema" in plain.provenance.notes[0]
    assert average.provenance.selection["part"] == "model_ema"
    top = torch.linalg.svdvals(E.double())[0] ** 2
    assert average["w"].spectrum.eigenvalues.max() == pytest.approx(float(top))
    kept = Audit.load(plain.save(tmp_path / "x.audit"))
    assert kept.provenance.notes == plain.provenance.notes


def test_tensors_that_lie_in_each_other_end():
    loop: dict = {"w": W}
    loop["again"] = loop
    with pytest.raises(UnreadableError, match="nested more than"):
        find_tensors(loop)
    wide: list = [W]
    for _ in range(40):
        wide = [wide, wide]
    with pytest.raises(UnreadableError, match="more than"):
        find_tensors(wide)


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(UnreadableError, match=r"two tensors are named a\.b"):
        find_tensors({"a": {"b": W}, "a.b": E})


NETS = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Linear(12, 16)
class Average:
    def __init__(self, net):
        self.module = net
    def state_dict(self):
        return self.module.state_dict()
"""
REFUSED = {
    "dict": lambda net, args, opt: {"model": net.state_dict(), "optimizer": opt.state_dict(), "args": args},
    "module in a dict": lambda net, args, opt: {"model": net, "epoch": 3},
    "bare module": lambda net, args, opt: net,
    "optimizer object": lambda net, args, opt: {"net": net.state_dict(), "opt": opt, "args": args},
    "nested": lambda net, args, opt: {"run": {"state_dict": net.state_dict(), "args": args}, "log": [args, (1, 2)]},
    "list": lambda net, args, opt: [args, {"model": net}],
    "old format": lambda net, args, opt: {"model": net.state_dict(), "args": args},
    "plain pickle": lambda net, args, opt: {"model": net.state_dict(), "args": args},
    "plain arrays": lambda net, args, opt: {"model": {n: p.detach().numpy() for n, p in net.named_parameters()}},
    "average": lambda net, args, opt: {"model": net, "ema": sys.modules["nets"].Average(net), "args": args},
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Files that were refused, and beside each what the printed lines made of it."""
    root = tmp_path_factory.mktemp("refused")
    (root / "nets.py").write_text(NETS)
    sys.path.insert(0, str(root))
    try:
        net = importlib.import_module("nets").Net()
        optimizer = torch.optim.Adam(net.parameters())
        net.one(torch.randn(3, 12)).sum().backward()
        optimizer.step()
        args = argparse.Namespace(lr=0.1, kind=type(net))
        script, copies = ["import os, sys", f"sys.path.insert(0, {str(root)!r})"], {}
        for kind, make in REFUSED.items():
            folder = root / kind
            folder.mkdir()
            made = make(net, args, optimizer)
            if kind.startswith("plain"):
                (folder / "model.pkl").write_bytes(pickle.dumps(made))
            else:
                old = {"_use_new_zipfile_serialization": False} if kind.startswith("old") else {}
                torch.save(made, folder / "model.pt", **old)
            with pytest.raises(UnsafeError) as caught:
                open_checkpoint(next(folder.iterdir()))
            *code, last = caught.value.fix.splitlines()[1:]
            # As a reader would: the lines that are printed, run where the file and its classes are.
            script += [f"os.chdir({str(folder)!r})", textwrap.dedent("\n".join(code))]
            copies[kind] = folder / last.rpartition(": ")[2]
        subprocess.run([sys.executable, "-c", "\n".join(script)], check=True, capture_output=True)
    finally:
        sys.path.remove(str(root))
        del sys.modules["nets"]
    return net.one.weight.detach().double(), copies


@pytest.mark.parametrize("kind", REFUSED)
def test_the_way_out_of_a_refused_pickle_works(refused, kind):
    weight, copies = refused
    (layer,) = tw.audit(copies[kind], min_evals=2)
    assert layer.row.name.endswith("one")
    assert layer.spectrum.eigenvalues.max() == pytest.approx(float(torch.linalg.svdvals(weight)[0] ** 2))


def test_the_command_takes_a_part_and_prints_what_was_left_out(tmp_path):
    from typer.testing import CliRunner

    from tailwise.cli.main import app

    torch.save({"model": {"w": W}, "model_ema": {"w": E}}, tmp_path / "m.pt")
    for options, said in (([], "model_ema"), (["--part", "model_ema"], "")):
        target = tmp_path / f"{len(options)}.audit"
        done = CliRunner().invoke(app, ["audit", str(tmp_path / "m.pt"), "-o", str(target), *options])
        assert done.exit_code == 0
        assert said in done.stdout
    first, second = (Audit.load(tmp_path / f"{count}.audit")["w"].row.digest for count in (0, 2))
    assert first != second
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "m.pt"), "--part", "nothing"])
    assert isinstance(done.exception, UsageError)


def test_pickles_of_estimators_and_of_no_tensors_are_called_so(tmp_path):
    from sklearn.linear_model import LogisticRegression

    (tmp_path / "a.pkl").write_bytes(pickle.dumps(LogisticRegression()))
    with pytest.raises(UnsafeError, match="sklearn") as caught:
        open_checkpoint(tmp_path / "a.pkl")
    assert "savez" in str(caught.value.fix)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"epoch": [1, 2.5]}))
    with pytest.raises(UnreadableError, match="pickle without tensors"):
        open_checkpoint(tmp_path / "b.pkl")


def test_of_lightnings_weight_averaging_the_weights_are_taken_and_the_average_is_a_part():
    weights, average = torch.ones(3, 2), torch.zeros(3, 2)
    saved = {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {"net.fc.weight": average},
        "current_model_state": {"net.fc.weight": weights},
        "averaging_state": {"n_averaged": torch.tensor(9)},
    }
    found = find_tensors(saved)
    assert found.tensors.keys() == {"net.fc.weight"}
    assert torch.equal(found.tensors["net.fc.weight"], weights)
    assert found.notes == (
        "took the weights (current_model_state) and left out their moving average (--part state_dict reads it)",
    )
    assert torch.equal(find_tensors(saved, "state_dict").tensors["net.fc.weight"], average)
