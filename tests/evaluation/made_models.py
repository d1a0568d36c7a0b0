"""A random Llama of a few thousand parameters, and a tokenizer of bytes."""

from __future__ import annotations

import pytest
import torch

VOCABULARY = 260


def make_llama(seed: int = 0, **changes):
    from tailwise.models.evaluation.quiet import quiet

    with quiet():
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
                 "tie_word_embeddings": False, "bos_token_id": 256, "eos_token_id": 257, "initializer_range": 0.2,
                 }  # fmt: skip
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changes})).eval()


def make_tokenizer(*, bos: bool = True):
    """Token ids are bytes; 256 begins and 257 ends a text, and none is added unasked."""
    from tailwise.models.evaluation.quiet import quiet

    with quiet():
        transformers = pytest.importorskip("transformers")
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab={**letters, "<s>": 256, "</s>": 257}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        named = {"bos_token": "<s>"} if bos else {}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **named)
