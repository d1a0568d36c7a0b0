"""JSON and TOML that nest deeper than can be read, or take a square of time, are one error wherever they are read."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tailwise
from tailwise.checkpoints.matrices import group
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UnsafeError, UsageError
from tailwise.core.storage import json_of, toml_of
from tailwise.judging.gates.parse import parse_expectations
from tailwise.models.evaluation import adapters

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "9" * 5000, "{", b"\xff"])
def test_json_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        json_of(text)


@pytest.mark.parametrize(
    "text", [f"a={DEEP}", "a=" + "{a=" * 50_000, ".".join("a" * 20_000) + "=1", f"[{'.'.join('a' * 20_000)}]",
             "a = {" + " . ".join(["b"] * 9_000) + "=1}", '"a" . \'b\' .' * 5_000 + "c=1", "a=" + "9" * 5000]
)  # fmt: skip
def test_toml_that_cannot_be_read_is_a_value_error_and_takes_no_time(text):
    with pytest.raises(ValueError, match=r"."):
        toml_of(text)
    with pytest.raises(UsageError):
        parse_expectations(text)


def test_usual_toml_is_read():
    numbers = ", ".join("0.5" for _ in range(500))
    words = "a.b.c" * 500
    assert toml_of(f'a.b.c = [{numbers}]\nd = "{words}"\n')["d"] == words


def test_headers_and_tensors_of_json_in_a_model(tmp_path):
    path = tmp_path / "m.safetensors"
    said = torch.full((50_000,), ord("["), dtype=torch.uint8)
    tensors = {"a.lora_A.weight": torch.ones(2, 16), "a.lora_B.weight": torch.ones(16, 2)}
    tensors |= {"b.weight": torch.ones(16, 16), "b.comfy_quant": said}
    save_file(tensors, path, metadata={"lora_adapter_metadata": DEEP, "_quantization_metadata": DEEP})
    group(open_checkpoint(path), conv="flatten", min_evals=8)


@pytest.mark.parametrize("text", [DEEP, "[]", "{", "5"])
def test_settings_of_an_adapter(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UnreadableError):
        adapters.settings_of(tmp_path)


def test_an_adapter_that_names_a_module_to_import_is_refused(tmp_path):
    settings = {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "evil"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsafeError, match="Megatron"):
        adapters.with_adapter(None, tmp_path)


def test_json_and_toml_are_read_in_one_place():
    """A scan: `json.loads` and `tomllib.loads` elsewhere would let a RecursionError through."""
    allowed = {"storage.py", "sniff.py", "documents.py"}  # the two others refuse keys that are there twice
    for path in Path(tailwise.__file__).parent.rglob("*.py"):
        if re.search(r"\b(json|tomllib)\.loads?\(", path.read_text(encoding="utf-8")):
            assert path.name in allowed, path
