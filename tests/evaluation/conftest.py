"""A random Llama and a tokenizer, at hand and in a folder, and a text."""

from __future__ import annotations

import pytest
from made_models import make_llama, make_tokenizer


@pytest.fixture(autouse=True)
def _own_data_sets(tmp_path, monkeypatch):
    """Tables that `datasets` converts go nowhere else."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-datasets")


@pytest.fixture(scope="session")
def llama():
    return make_llama()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def folder(tmp_path_factory, llama, tokenizer):
    """The random Llama and its tokenizer on disk."""
    from tailwise.models.evaluation.quiet import quiet

    place = tmp_path_factory.mktemp("llama")
    with quiet():
        llama.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def story(tmp_path):
    """A text of 3,200 letters."""
    path = tmp_path / "story.txt"
    path.write_text("the cat sat on the mat and saw a dog. " * 84 + "the end.")
    return path


@pytest.fixture
def adapter(folder, tmp_path):
    """A LoRA of the model in `folder` that changes it."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from tailwise.models.evaluation.quiet import quiet

    with quiet():
        model = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_pretrained(folder),
            peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
        )
        model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"
