"""Adapters beside their base: as the model with the change, never as the change alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.audits.of_adapter import adapter_mode
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.judging.compare.difference import difference

MODULES = [f"model.layers.{i}.mlp.up_proj" for i in range(2)]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(base, adapter, W₀ and ΔW by module), in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAILWISE_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    olds = {name: torch.randn(96, 64, generator=generator) for name in MODULES}
    for folder in ("base", "lora"):
        (tmp_path / folder).mkdir()
    save_file({f"{name}.weight": old for name, old in olds.items()}, "base/model.safetensors")
    factors, changes = {}, {}
    for name in MODULES:
        down, up = torch.randn(2, 64, generator=generator), 0.1 * torch.randn(96, 2, generator=generator)
        factors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
        changes[name] = 2 * (up.double() @ down.double())
    save_file(factors, "lora/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    return olds, changes


@pytest.fixture
def called(command_line, monkeypatch):
    """Run a command line on a wide terminal: (exit code, all that it said)."""
    monkeypatch.setenv("COLUMNS", "300")

    def run_it(*words: str) -> tuple[int, str]:
        code, out, err = command_line(*words)
        return code, out + err

    return run_it


def test_the_change_of_a_merged_adapter_is_its_update(folders, tmp_path):
    olds, changes = folders
    before, after = tw.audit("base"), tw.audit("lora", adapter_mode="merged")
    after.save("merged.audit")
    for audit in (after, tw.Audit.load("merged.audit")):
        assert adapter_mode(audit) == "merged"
        for layer in difference(before, audit).comparison.layers:
            expected = float(changes[layer.name].norm() / olds[layer.name].double().norm())
            assert layer.weights["relative_change"] == pytest.approx(expected, rel=1e-6)
            assert layer.weights["change_rank"] == 2


def test_a_model_and_a_change_are_not_subtracted(folders):
    base, change = tw.audit("base"), tw.audit("lora")
    for pair in ((base, change), (change, base)):
        with pytest.raises(UsageError, match="adapter's change alone") as raised:
            difference(*pair)
        assert raised.value.where == "lora"
        found = tw.compare(*pair)
        assert found.conclusion.startswith("No verdict: lora was audited as the change of an adapter alone")
        assert "--adapter merged" in found.conclusion
    assert "alone" not in tw.compare(change, change).conclusion


def test_older_audits_are_told_by_their_rows(folders):
    for mode in ("delta", "merged"):
        audit = tw.audit("lora", adapter_mode=mode)
        audit.provenance.selection.pop("adapter")
        audit.provenance.selection.pop("base", None)
        assert adapter_mode(audit) == mode
    assert adapter_mode(tw.audit("base")) is None


def test_the_command_merges_an_adapter_beside_a_model(folders, called):
    code, said = called("compare", "base", "lora", "--weights")
    assert code == 0
    assert "2 of 2 matrices" in said
    assert "missing" not in said
    assert "‖ΔW‖/‖W₀‖ is" in said
    tw.audit("base").save("base.audit")
    assert "2 of 2 matrices" in called("compare", "base.audit", "lora")[1]
    # Two adapters are compared as the changes that they are.
    assert "Nothing changed" in called("compare", "lora", "lora")[1]


def test_an_adapter_whose_base_is_elsewhere_is_to_be_audited_first(folders, tmp_path, called):
    place = tmp_path / "lora" / "adapter_config.json"
    place.write_text(place.read_text().replace('"base"', '"/gone/base"'))
    code, said = called("compare", "base", "lora")
    assert code == 2
    assert "no folder here" in said
    assert "tailwise audit lora --adapter merged --base MODEL -o x.audit" in said
    assert called("audit", "lora", "--adapter", "merged", "--base", "base", "-o", "x.audit")[0] == 0
    code, said = called("compare", "base", "x.audit", "--weights")
    assert code == 0
    assert "lora is an adapter, merged into base" in said
    assert "read in two ways" not in said


def test_an_audit_of_a_change_says_so_and_replaces_no_other(folders, called, tmp_path):
    assert called("audit", "lora", "--adapter", "merged")[0] == 0
    code, said = called("audit", "lora")
    assert code == 0
    assert "NO VERDICT: this is the adapter's change alone; `tailwise audit" in " ".join(said.split())
    assert "HEALTHY" not in said
    assert "lora --adapter merged" in said
    modes = {path.name: adapter_mode(tw.Audit.load(path)) for path in tmp_path.glob("*.audit")}
    assert modes.pop("lora.audit") == "merged"
    assert list(modes.values()) == ["delta"]
    assert called("audit", "lora")[0] == 0  # the same question again
    assert len(list(tmp_path.glob("*.audit"))) == 2


def test_the_verdict_on_a_merged_adapter_is_on_the_model(folders):
    assert "alone" not in tw.diagnose(tw.audit("lora", adapter_mode="merged")).health.why
    assert "alone" in tw.diagnose(tw.audit("lora")).health.why


@pytest.mark.parametrize("folder", ["base", "lora", "empty"])
def test_a_folder_that_is_no_audit_is_called_one(folders, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableError, match="is a folder that holds no audit") as raised:
        tw.Audit.load(folder)
    assert f"tailwise audit {folder}" in str(raised.value)


def test_an_edited_selection_is_refused(folders):
    audit = tw.audit("lora")
    audit.provenance.selection["adapter"] = "both"
    audit.save("edited.audit")
    with pytest.raises(UnreadableError, match="neither delta nor merged"):
        tw.Audit.load("edited.audit")
    assert np.isfinite(audit[MODULES[0]].stable_rank)


def test_a_check_of_an_adapter_says_that_the_change_alone_was_measured(folders, tmp_path, called):
    (tmp_path / "e.toml").write_text('expect = ["stable_rank > 0"]')
    code, said = called("check", "lora", "--expect", "e.toml", "--markdown", "m.md")
    assert code == 0
    assert "the adapter's change ΔW alone" in said
    assert "--adapter merged" in said
    assert "ΔW alone" in (tmp_path / "m.md").read_text()
    assert "alone" not in called("check", "base", "--expect", "e.toml")[1]


def test_a_diagnosis_of_an_adapter_folder_names_the_audit_that_judges_it(folders, called):
    code, said = called("diagnose", "lora")
    assert code == 3
    assert "`tailwise audit lora --adapter merged`" in said
    code, said = called("diagnose", "base")
    assert "`tailwise audit base`" in said


def test_a_change_that_breaks_any_model_is_a_verdict_all_the_same(folders):
    audit = tw.audit("lora")
    row = replace(audit.rows[0], status="NOT_FINITE", metrics={})
    broken = tw.Audit([row, *audit.rows[1:]], {layer.name: layer for layer in audit}, audit.provenance)
    health = tw.diagnose(broken).health
    assert health is not None
    assert health.word == "unhealthy"
    assert "This is the adapter's change alone; `tailwise audit lora --adapter merged`" in health.why


def test_an_adapter_given_before_its_base_is_told(folders, called):
    code, said = called("compare", "lora", "base")
    assert code == 0
    assert "the first, lora, is an adapter of the second" in said
    assert "is an adapter of the second" not in called("compare", "base", "lora")[1]
