"""A small Llama with random weights, on disk, with its audit and tokens to try plans on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tailwise.audits.audit import Audit
from tailwise.audits.run import audit as audit_model

VOCABULARY = 64


@pytest.fixture(scope="session")
def llama(tmp_path_factory, _no_users_cache) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    for value in model.parameters():
        if value.ndim > 1:
            value.data.mul_(8)  # so that pruning is felt
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def audit(llama) -> Audit:
    return audit_model(str(llama), estimator="peak", use_cache=False)


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, 32 * 40)
