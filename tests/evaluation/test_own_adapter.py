"""An adapter names what is loaded for it in its own folder, or is refused; what it names of its base is told."""

import json
import pickle
import shutil

import pytest
import torch

from tailwise.core.errors import UnreadableError, UnsafeError, UsageError
from tailwise.models.evaluation.adapters import base_of
from tailwise.models.evaluation.loading import load_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def changed(place, **values):
    file = place / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


ELSEWHERE = {
    "a shadow": {"peft_type": "SHADOW", "shadow_model": "org/theirs"},
    "a mixture": {"peft_type": "XLORA", "adapters": {"0": "org/theirs"}, "hidden_size": 8},
    "prompts": {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "/etc/passwd"},
    "statistics": {"corda_config": {"covariance_file": "/etc/passwd"}},
    "a module": {"megatron_config": {"a": 1}, "megatron_core": "elsewhere"},
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_an_adapter_has_nothing_else_loaded(adapter, folder, kind, hub):
    changed(adapter, **ELSEWHERE[kind])
    with pytest.raises(UnsafeError, match=r"names other files or models|Megatron"):
        load_model(adapter, base=str(folder))
    assert not hub.server.seen


def test_nor_one_that_lies_beside_a_model(adapter, folder, tmp_path, hub):
    """transformers looks for adapters by itself."""
    place = shutil.copytree(folder, tmp_path / "both")
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, place)
    assert load_model(place).module is not None
    changed(place, **ELSEWHERE["a shadow"])
    with pytest.raises(UnsafeError, match="names other files or models"):
        load_model(place)
    assert not hub.server.seen


@pytest.mark.parametrize(
    "said",
    [{"target_modules": "(a+)+b"}, {"rank_pattern": {"(.*.*)*x": 4}}, {"modules_to_save": ["lm_head", "(a+)+b"]},
     {"layers_pattern": ["(a+)+b"]}, {"peft_type": "IA3", "feedforward_modules": "(a+)+b"},
     {"peft_type": "FOURIERFT", "n_frequency_pattern": {"(a+)+b": 9}}],
    ids=["targets", "ranks", "what is saved", "layers", "a network", "frequencies"],
)  # fmt: skip
def test_patterns_of_modules_end(adapter, folder, said):
    changed(adapter, **said)
    with pytest.raises(UnreadableError, match="run without end"):
        load_model(adapter, base=str(folder))


@pytest.mark.parametrize("key", ["alpha_pattern", "rank_pattern"])
def test_many_patterns_end_together(adapter, folder, key):
    changed(adapter, **{key: {f"x{n}.*a.*a.*a.*b": 4 for n in range(1000)}})
    with pytest.raises(UnreadableError, match="without end"):
        load_model(adapter, base=str(folder))


def test_patterns_that_adapters_have_are_taken(adapter, folder):
    changed(adapter, alpha_pattern={rf"model\\.layers\\.{n}\\..*(q|v)_proj": 4 for n in range(200)})
    assert load_model(adapter, base=str(folder)).module is not None


@pytest.mark.parametrize(
    "said",
    [{"init_lora_weights": "pissa_niter_1000000000"}, {"init_lora_weights": "pissa_niter_" + "9" * 5000},
     {"loftq_config": {"loftq_iter": 10**9}}, {"layer_replication": [[0, 10**9]]},
     {"layer_replication": [[0, 1]] * 20_000}],
    ids=["niter", "digits", "loftq", "layers", "spans"],
)  # fmt: skip
def test_what_begins_a_training_does_not_go_on_without_end(adapter, folder, said):
    changed(adapter, **said)
    with pytest.raises(UnreadableError, match=r"iterations|copies"):
        load_model(adapter, base=str(folder))


@pytest.mark.parametrize("said", [True, "pissa_niter_4", "olora"])
def test_how_adapters_begin_is_heeded(adapter, folder, said):
    changed(adapter, init_lora_weights=said)
    assert load_model(adapter, base=str(folder)).module is not None


def test_a_rank_is_not_made_room_for_beyond_what_the_files_hold(adapter, folder):
    changed(adapter, r=10**8)
    with pytest.raises(UnreadableError, match="far more weights than its files hold"):
        load_model(adapter, base=str(folder))


def test_a_base_is_a_folder_or_an_id_and_is_told_before_it_is_asked_for(adapter, folder, hub, caplog):
    assert base_of(adapter, None) == str(folder)
    assert not caplog.text
    changed(adapter, base_model_name_or_path="org/base")
    assert base_of(adapter, None) == "org/base"
    assert "names hf://org/base, which is asked for" in caplog.text
    assert base_of(adapter, str(folder)) == str(folder)
    for other in ("http://127.0.0.1:1/x", "s3://bucket/x", "\\\\host\\share", "/no/such/folder", "//host/share"):
        changed(adapter, base_model_name_or_path=other)
        with pytest.raises(UsageError, match=r"give the model that it adapts by base$"):
            base_of(adapter, None)
    assert not hub.server.seen


def shared():
    """A few hundred bytes that unfold to 2⁴⁰ lists."""
    inner = []
    for _ in range(40):
        inner = [inner, inner]
    return pickle.dumps({"a": inner, "b": inner}, protocol=2)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_pickles_that_others_load_are_gone_through_first(adapter, folder, tmp_path, name):
    place = adapter if name.startswith("adapter") else shutil.copytree(folder, tmp_path / "model")
    for file in place.glob("*.safetensors"):
        file.unlink()
    header = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2) + pickle.dumps({}, 2)
    (place / name).write_bytes(header + shared() + pickle.dumps([], 2))
    with pytest.raises(UnreadableError, match=r"unfold|objects|pickle"):
        load_model(place, base=str(folder) if place == adapter else None)


@pytest.mark.parametrize("way", ["another file beside it", "an index that names it"])
def test_pickles_are_gone_through_whatever_leads_to_them(folder, tmp_path, way):
    place = shutil.copytree(folder, tmp_path / "model")
    weights = (place / "model.safetensors").rename(place / "model-other.safetensors")
    header = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2) + pickle.dumps({}, 2)
    name = "weights.bin" if way.startswith("an index") else "pytorch_model.bin"
    (place / name).write_bytes(header + shared() + pickle.dumps([], 2))
    if way.startswith("an index"):
        weights.unlink()
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(UnreadableError, match=r"unfold|objects|pickle"):
        load_model(place)


def test_honest_pickles_are_loaded(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "model")
    from safetensors.torch import load_file

    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    torch.save(tensors, place / "pytorch_model.bin")
    assert load_model(place).module is not None
