"""Healthy models to compare with: counted by model, silent below five, never the model itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made_audits import NOISE, audit_of, changed, healthy_rows, name
from typer.testing import CliRunner

import tailwise as tw
from tailwise.audits.audit import Audit
from tailwise.cli.main import app
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.judging.diagnosis import atlas as atlases
from tailwise.judging.diagnosis.atlas import LEAST_MODELS, Atlas, load
from tailwise.judging.diagnosis.atlas_build import build, save
from tailwise.judging.diagnosis.verdict import standings

LAYER = name("mlp_up", 2)


def model(seed: int, shift: float = 0.0, blocks: int = 6, **recipe) -> Audit:
    """A healthy model; `shift` raises every stable rank."""
    rng = np.random.default_rng(seed)
    rows = healthy_rows(blocks)
    for key, row in rows.items():
        metrics = {**row.metrics, "stable_rank": 10.0 + shift + rng.uniform(-1, 1), "log_norm": rng.uniform(0, 9)}
        rows[key] = replace(row, digest=f"{seed}-{key}", metrics=metrics)
    made = audit_of(rows, recipe={"estimator": "ks", **recipe})
    return Audit(list(made.rows), {one.row.name: one for one in made},
                 replace(made.provenance, model=f"m{seed}", fingerprint=f"f{seed}"))  # fmt: skip


def of(count: int) -> Atlas:
    return build(model(seed) for seed in range(count))


def test_below_five_models_an_atlas_says_nothing():
    own = model(99)
    assert standings(own, LAYER, of(LEAST_MODELS - 1)) == ()
    told = {one.metric: one for one in standings(own, LAYER, of(LEAST_MODELS))}
    assert told["stable_rank"].models == LEAST_MODELS


def test_models_count_and_not_matrices():
    """Four small models lie below, one of sixty blocks above: four fifths are below, not four of sixty-four."""
    members = [model(seed, shift=-5.0) for seed in range(4)] + [model(4, shift=5.0, blocks=60)]
    own = model(99)
    (told,) = [one for one in standings(own, LAYER, build(members)) if one.metric == "stable_rank"]
    assert told.below == pytest.approx(0.8)
    assert "higher than in 80 %" in str(told)
    assert "5 models" in str(told)


def test_a_model_is_not_compared_with_itself_by_content_or_in_another_type():
    found = of(6)
    own = model(3)
    assert len(found.without(own)) == 5
    renamed = Audit(list(own.rows), {one.row.name: one for one in own},
                    replace(own.provenance, model="copy", fingerprint="other"))  # fmt: skip
    assert len(found.without(renamed)) == 5  # it shares the bytes of its matrices
    rows = {row.name: replace(row, digest=f"cast-{row.name}") for row in own.rows}
    cast = audit_of(rows)
    assert len(found.without(cast)) == 5  # the same norms under other bytes
    assert len(found.without(model(77))) == 6


def test_the_same_content_counts_once():
    assert len(build([model(1), model(1), model(2)])) == 2


def test_tails_that_were_fitted_differently_are_refused():
    with pytest.raises(UsageError, match="another k_frac"):
        build([model(1, k_frac=0.1), model(2, k_frac=0.2)])
    with pytest.raises(UsageError, match="no audit"):
        build([])


def test_what_is_written_is_read(tmp_path):
    found = of(5)
    read = load(save(found, tmp_path / "x.atlas"))
    assert read.members == found.members


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":"tailwise-atlas","version":9,"models":[]}',
                                  '{"format":"tailwise-atlas","version":1,"models":[{"name":1}]}', "\x00",
                                  '{"format":"tailwise-atlas","version":1,"models":[{"name":"a","fingerprint":"b",'
                                  '"digests":[],"sizes":[],"cells":[{"of":["q"],"matrices":1e999,"values":{}}]}]}',
                                  ])  # fmt: skip
def test_what_is_no_atlas_is_one_error(tmp_path, text):
    path = tmp_path / "x.atlas"
    path.write_text(text)
    with pytest.raises(UnreadableError, match="atlas"):
        load(path)


def test_bytes_that_are_no_text_are_no_atlas(tmp_path):
    path = tmp_path / "x.atlas"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UnreadableError, match="is no text"):
        load(path)


def test_noise_that_healthy_models_have_is_noted():
    """A fifth of healthy models have noise in this role: then it is no warning here."""

    def noisy(audit: Audit) -> Audit:
        rows = changed({row.name: row for row in audit.rows}, LAYER, **NOISE)
        return audit_of(rows, recipe={"estimator": "ks"})

    sick = noisy(model(99))
    plain = [replace_fingerprint(model(seed), seed) for seed in range(5)]
    used = [replace_fingerprint(noisy(model(seed)), seed) for seed in range(5)]
    for members, severity in ((plain, "warning"), (used, "info")):
        (found,) = [item for item in tw.diagnose(sick, atlas=build(members)).findings if item.code == "TW201"]
        assert found.severity == severity
        assert "healthy models have noise in mlp_up" in found.evidence[0].says


def replace_fingerprint(audit: Audit, seed: int) -> Audit:
    return Audit(list(audit.rows), {one.row.name: one for one in audit},
                 replace(audit.provenance, fingerprint=f"f{seed}"))  # fmt: skip


def test_the_shipped_atlas_speaks_of_common_roles():
    shipped = atlases.default()
    assert len(shipped) >= 20
    own = model(99)
    assert {one.metric for one in standings(own, LAYER)} == {"effective_rank", "stable_rank", "alpha_hill"}
    assert tw.diagnose(own).atlas == len(shipped)


def test_the_variable_names_another(tmp_path, monkeypatch):
    save(of(5), tmp_path / "own.atlas")
    monkeypatch.setenv(atlases.VARIABLE, str(tmp_path / "own.atlas"))
    assert len(atlases.default()) == 5
    monkeypatch.setenv(atlases.VARIABLE, "none")
    assert len(atlases.default()) == 0


def test_the_commands(tmp_path):
    (tmp_path / "audits").mkdir()
    for seed in range(5):
        model(seed).save(tmp_path / "audits" / f"{seed}.audit")
    runner, target = CliRunner(), str(tmp_path / "x.atlas")
    made = runner.invoke(app, ["atlas", "build", str(tmp_path / "audits"), "-o", target])
    assert made.exit_code == 0, made.output
    assert "5 models of 5 audits" in made.output
    assert json.loads((tmp_path / "x.atlas").read_text())["format"] == "tailwise-atlas"
    shown = runner.invoke(app, ["atlas", "show", target])
    assert "attn_q 5" in shown.output
    told = runner.invoke(app, ["diagnose", str(tmp_path / "audits" / "0.audit"), "--atlas", target, "--json"])
    assert json.loads(told.stdout)["atlas"] == 4
    for wrong in ([str(tmp_path / "audits"), "-o", "x.json"], [str(tmp_path / "nothing"), "-o", target]):
        assert runner.invoke(app, ["atlas", "build", *wrong]).exit_code != 0
    (tmp_path / "empty").mkdir()
    assert "holds no audits" in str(
        runner.invoke(app, ["atlas", "build", str(tmp_path / "empty"), "-o", target]).exception
    )
