"""Blocks that go: which fields of a config follow, and what is refused before any work."""

from __future__ import annotations

import json

import numpy as np
import pytest

from families.kinds import FAMILIES, Family, built, saved
from tailwise.compression.shrinking.config_depth import depth_fields
from tailwise.core.errors import UsageError
from tailwise.models.walking.walk import blocks_of

FOUR = {"num_hidden_layers": 4}


def without(model_type, values, *gone, family=None):
    model = built(family or Family(model_type, model_type, values))
    names = [block.name for block in blocks_of(model)]
    return depth_fields(model, [names[index] for index in gone])


def test_a_list_that_only_happens_to_be_as_long_is_left_alone():
    found = without("llama", {**FOUR, "eos_token_id": [1, 2, 3, 4]}, 1)
    assert found == {"num_hidden_layers": 3}


def test_lists_of_layers_lose_their_items():
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    found = without("qwen2", {**FOUR, "layer_types": kinds, "use_sliding_window": True, "max_window_layers": 3}, 1)
    assert found["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]
    assert found["max_window_layers"] == 2


@pytest.mark.parametrize(("gone", "dense"), [(0, 1), (3, 2)])
def test_the_first_dense_blocks_are_counted(gone, dense):
    values = {**FAMILIES["deepseek_v3"].values, **FOUR, "first_k_dense_replace": 2}
    found = without("deepseek_v3", {**values, "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}, gone)
    assert found["first_k_dense_replace"] == dense


def test_blocks_that_are_named_by_number_are_named_anew():
    found = without("qwen3_moe", {**FOUR, "mlp_only_layers": [1, 3]}, 0)
    assert found["mlp_only_layers"] == [0, 2]


def test_a_period_that_would_put_other_blocks_there_is_refused():
    with pytest.raises(UsageError, match=r"block 2 would become block 1, where the config puts one with mlp.gate"):
        without("qwen3_moe", {**FOUR, "decoder_sparse_step": 2}, 1)


def test_attention_that_scales_by_place_is_refused_unless_the_last_go():
    values = {"n_layer": 4, "scale_attn_by_inverse_layer_idx": True}
    with pytest.raises(UsageError, match="scale_attn_by_inverse_layer_idx scales each block by its place"):
        without("gpt2", values, 1)
    assert without("gpt2", values, 3) == {"n_layer": 3}


def test_jamba_is_refused_before_any_work():
    with pytest.raises(UsageError, match="whole blocks of this JambaForCausalLM cannot go"):
        without("", {}, 0, family=FAMILIES["jamba"])


def test_of_a_composite_model_the_text_tower_is_counted():
    found = without("", {}, 0, family=FAMILIES["llava"])
    assert found["text_config"]["num_hidden_layers"] == 1


def test_plan_drop_refuses_before_it_measures(tmp_path, call):
    """Where not even the last block can go; which others cannot is only known once they are chosen."""
    saved(Family("bart", "bart"), tmp_path / "model")
    np.save(tmp_path / "ids.npy", np.arange(1, 60).repeat(4))
    code, _, err = call(
        "plan", "drop", "model", "--count", 1, "--calibration", "ids.npy", "--window", 24, "-o", "p.json"
    )
    assert code == 2
    assert "whole blocks of this BartForCausalLM cannot go" in err
    assert not (tmp_path / "p.json").exists()


def test_the_changed_config_is_written_where_it_stood(tmp_path, call):
    saved(FAMILIES["llava"], tmp_path / "model")
    np.save(tmp_path / "ids.npy", np.arange(1, 60).repeat(4))
    given = ("--calibration", "ids.npy", "--window", 24, "--samples", 4)
    assert call("plan", "drop", "model", "--count", 1, *given, "-o", "p.json")[0] == 0
    assert call("apply", "p.json", "model", "-o", "out")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 1
    assert config["vision_config"]["num_hidden_layers"] == 2
