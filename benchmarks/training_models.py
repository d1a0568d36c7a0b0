"""The small models of `benchmarks/training_faults.py`, and where adapters are put on them."""

from __future__ import annotations

import torch
from torch import nn

LENGTH, VOCABULARY = 32, 96  # characters of a window, and how many there are


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=LENGTH, tie_word_embeddings=False,
    ))  # fmt: skip


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=LENGTH, tie_word_embeddings=False,
        resid_pdrop=0.1, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, image_size=8, patch_size=2,
        num_channels=1, num_labels=10,
    ))  # fmt: skip


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
                         nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))  # fmt: skip


def _cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(48 * 16, 64), nn.ReLU(), nn.Linear(64, 10))  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def _deep_mlp() -> nn.Module:
    blocks = [_Residual(nn.Sequential(nn.LayerNorm(96), nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 96)))
              for _ in range(3)]  # fmt: skip
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), *blocks, nn.LayerNorm(96), nn.Linear(96, 10))


def _resnet() -> nn.Module:
    def block(width: int) -> nn.Module:
        return _Residual(nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        ))  # fmt: skip

    return nn.Sequential(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), block(24),
                         nn.Conv2d(24, 40, 3, stride=2, padding=1), nn.ReLU(), block(40), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(40, 10))  # fmt: skip


def _deep_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=2, n_positions=LENGTH, tie_word_embeddings=False,
        resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def _wide_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(
        hidden_size=80, num_hidden_layers=2, num_attention_heads=4, intermediate_size=120, image_size=8, patch_size=4,
        num_channels=1, num_labels=10,
    ))  # fmt: skip


class _Mixer(nn.Module):
    """Patches of 2 × 2 pixels, mixed over places and over channels in turn (Tolstikhin et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()

        def mixed(width: int, inner: int) -> nn.Module:
            return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

        self.stem = nn.Conv2d(1, 40, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(40) for _ in range(4))
        self.places = nn.ModuleList(mixed(16, 24) for _ in range(2))
        self.channels = nn.ModuleList(mixed(40, 64) for _ in range(2))
        self.head = nn.Linear(40, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in range(2):
            x = x + self.places[block](self.norms[2 * block](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[block](self.norms[2 * block + 1](x))
        return self.head(x.mean(1))


def _plain_cnn() -> nn.Module:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(*layer(1, 12), *layer(12, 20), nn.MaxPool2d(2), *layer(20, 28), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(112, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 10))  # fmt: skip


def _neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=40, num_hidden_layers=3, num_attention_heads=4, intermediate_size=112,
        max_position_embeddings=LENGTH, use_parallel_residual=True, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


MODELS = {"llama": _llama, "gpt2": _gpt2, "vit": _vit, "mlp": _mlp, "cnn": _cnn, "deep mlp": _deep_mlp,
          "resnet": _resnet, "deep gpt2": _deep_gpt2, "wide vit": _wide_vit, "mixer": _Mixer,
          "plain cnn": _plain_cnn, "neox": _neox}  # fmt: skip
WORDS = ("llama", "gpt2", "deep gpt2", "neox")
_GPT2_TARGETS, _VIT_TARGETS = ["c_attn", "c_fc"], r".*(q_proj|v_proj|query|value|fc1|intermediate\.dense)"
TARGETS = {"llama": ["q_proj", "v_proj", "up_proj", "down_proj"], "gpt2": _GPT2_TARGETS, "vit": _VIT_TARGETS,
           "deep gpt2": _GPT2_TARGETS, "wide vit": _VIT_TARGETS, "mixer": r".*(places|channels)\.\d\.[02]",
           "neox": ["query_key_value", "dense", "dense_4h_to_h"]}  # fmt: skip
#: Of adapters, by the seed.
RANKS = {"held out": (2, 6, 12), "adapters": (1, 3, 10)}
