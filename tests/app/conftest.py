"""An app over two audits, a plan and a history, all small and made here."""

import json
from dataclasses import replace

import numpy as np
import pytest

import tailwise as tw
from tailwise.history.point import Alarm, Point
from tailwise.history.store import History

pytest.importorskip("fastapi")
pytest.importorskip("altair")

from fastapi.testclient import TestClient

from tailwise.app.server import create_app
from tailwise.app.settings import AppSettings
from tailwise.app.workspace.workspace import Workspace

EVIL = "layers.0.<script>alert(1)</script>'\"&{{7*7}}.mlp.up_proj"


def heavy(rows, cols, seed, exponent=2.5):
    """A matrix whose spectrum has a power-law tail."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((rows, cols)))
    v, _ = np.linalg.qr(rng.standard_normal((cols, cols)))
    values = np.sort(rng.pareto(exponent - 1, cols) + 1)[::-1] ** 0.5
    return (u * values) @ v.T


@pytest.fixture
def evil():
    """A name that tries to be markup."""
    return EVIL


@pytest.fixture(scope="session")
def weights():
    """Four blocks of two roles, one hostile name, one vector."""
    found = {}
    for block in range(4):
        found[f"layers.{block}.mlp.up_proj.weight"] = heavy(96, 64, block)
        found[f"layers.{block}.self_attn.q_proj.weight"] = heavy(64, 64, 10 + block, 2.2)
    found[EVIL + ".weight"] = heavy(64, 48, 99)
    found["norm.weight"] = np.ones(64)
    return found


@pytest.fixture(scope="session")
def audits(weights):
    """An audit, and one of the same model trained on."""
    moved = {name: array * 1.3 + (0.02 if array.ndim == 2 else 0.0) for name, array in weights.items()}
    made = [tw.audit(each, use_cache=False, randomize=1) for each in (weights, moved)]
    names = ("org/base", "org/<b>tuned</b>")
    return [
        tw.Audit(list(a.rows), {layer.row.name: layer for layer in a}, replace(a.provenance, model=name))
        for a, name in zip(made, names, strict=True)
    ]


@pytest.fixture(scope="session")
def plan_text():
    """A plan to prune."""
    entries = {
        f"layers.{i}.mlp.up_proj.weight": {
            "role": "mlp_up",
            "block": i,
            "parameters": 6144,
            "sparsity": 0.5 + i / 20,
            "reason": "made here",
        }
        for i in range(4)
    }
    return json.dumps(
        {
            "tailwise_plan": 1,
            "kind": "prune",
            "operator": "magnitude",
            "allocator": "uniform",
            "model": "org/base",
            "tried": [{"allocator": "uniform", "perplexity": 12.5}],
            "entries": entries,
        }
    )


def points(run, last=30):
    """A run whose loss falls."""
    return [
        Point(
            run=run,
            step=step,
            cadence="full",
            time=1.7e9 + step,
            scalars={"loss": 5.0 - step / 10},
            layers={f"layers.{i}.mlp.up_proj": {"alpha": 3.0 + step / 100 + i} for i in range(4)},
        )
        for step in range(0, last, 10)
    ]


@pytest.fixture
def folder(tmp_path, audits, plan_text):
    """What is served."""
    root = tmp_path / "served"
    root.mkdir()
    audits[0].save(root / "base.audit")
    audits[1].save(root / "tuned.audit")
    (root / "plan.json").write_text(plan_text)
    (root / "broken.audit").write_bytes(b"PK\x05\x06" + bytes(18))  # a zip with nothing in it
    with History(root / "history.db") as history:
        history.add_all(points("run & <i>one</i>"))
        history.add_alarm(
            Alarm(
                run="run & <i>one</i>",
                step=20,
                time=0.0,
                rule="TW702",
                severity="warning",
                title="loss <b>spike</b>",
                layers=(),
                evidence={},
                since=10,
                remedies=("AdaptiveClip",),
            )
        )
    return root


@pytest.fixture
def settings(tmp_path):
    """Of a server on this machine."""
    return AppSettings(state=tmp_path / "state")


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch, tmp_path):
    """No test talks to an endpoint that this machine's user has set up."""
    monkeypatch.setenv("TAILWISE_ASSISTANT_FILE", str(tmp_path / "assistant.json"))
    for name in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"TAILWISE_ASSISTANT_{name}", raising=False)


@pytest.fixture
def app(folder, settings):
    """The app."""
    (settings.state / "audits").mkdir(parents=True)
    return create_app(Workspace([folder, settings.state / "audits"], store=str(folder / "history.db")), settings)


@pytest.fixture
def client(app):
    """A browser without JavaScript on this machine, which proves its writes."""
    with TestClient(app, base_url="http://127.0.0.1:8440") as opened:
        page = opened.get("/models").text
        opened.headers["X-CSRF-Token"] = page.split('name="csrf" content="')[1].split('"')[0]
        yield opened


@pytest.fixture
def ids(app):
    """Title → identity."""
    return {entry.title: entry.id for entry in app.state.context.workspace.entries()}
