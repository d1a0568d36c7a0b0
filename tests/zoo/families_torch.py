"""torch's own layers, plain and under what computes their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from zoo.entry import Entry, Specimen
from zoo.specimens import of_module

LAYERS, WEIGHTS, WRAPPED = "torch: layers", "torch: computed weights", "torch: wrapped modules"


class Holder(nn.Module):
    """Gives a layer a name."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def layer(name: str, make: Callable[[], nn.Module], kind: str = LAYERS, **options: Any) -> Entry:
    """The line of a layer, held as `layer` or as what `at` says."""
    never, at, as_made = options.pop("never", ()), options.pop("at", "layer"), options.pop("as_made", False)

    def build(folder: Path) -> Specimen:
        torch.manual_seed(0)
        return of_module(Holder(**{at: make()}), folder, never, as_made=as_made)

    return Entry(name, kind, build, **options)


def weight(name: str, make: Callable[[], nn.Module], **options: Any) -> Entry:
    """The line of a layer whose weight is computed from what is stored."""
    return layer(name, make, WEIGHTS, **options)


def whole(name: str, make: Callable[[], nn.Module], **options: Any) -> Entry:
    """The line of a model that is not inside anything of the zoo's."""

    def build(folder: Path) -> Specimen:
        torch.manual_seed(0)
        return of_module(make(), folder)

    return Entry(name, options.pop("kind", LAYERS), build, **options)


class Doubled(nn.Module):
    """A parametrization that no reader knows."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X * 2 + X.flip(0)


def _old_norm(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight norm is what old files hold
        return nn.utils.weight_norm(module, name, dim)


def _old_spectral(module: nn.Module) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(module)


def _custom() -> nn.Module:
    linear = nn.Linear(24, 16)
    parametrize.register_parametrization(linear, "weight", Doubled())
    return linear


def _pruned() -> nn.Module:
    linear = nn.Linear(24, 16)
    prune.random_unstructured(linear, "weight", 0.5)
    return linear


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 16))


NEW = {"since": "unreleased"}

ENTRIES = [
    layer("Linear", lambda: nn.Linear(24, 16)),
    layer("Linear, bf16", lambda: nn.Linear(24, 16).bfloat16()),
    layer("Linear, float16", lambda: nn.Linear(24, 16).half()),
    layer("Linear, float64", lambda: nn.Linear(24, 16).double()),
    layer("Linear, square", lambda: nn.Linear(24, 24, bias=False)),
    layer("Bilinear", lambda: nn.Bilinear(12, 10, 9), pending="a file's is flattened like a kernel", **NEW),
    layer("Conv1d", lambda: nn.Conv1d(12, 16, 3, stride=2, padding=1)),
    layer("Conv2d", lambda: nn.Conv2d(12, 16, (3, 2), dilation=2, padding_mode="circular", padding=1)),
    layer("Conv3d", lambda: nn.Conv3d(8, 16, 2)),
    layer("Conv2d, grouped", lambda: nn.Conv2d(16, 24, 3, groups=4)),
    layer("Conv2d, depthwise", lambda: nn.Conv2d(16, 16, 5, groups=16)),
    layer("Conv2d, 1 × 1", lambda: nn.Conv2d(16, 24, 1)),
    layer("ConvTranspose1d", lambda: nn.ConvTranspose1d(24, 12, 4, stride=2, padding=1), **NEW),
    layer("ConvTranspose2d", lambda: nn.ConvTranspose2d(24, 12, 2, stride=2, output_padding=1), **NEW),
    layer("ConvTranspose3d", lambda: nn.ConvTranspose3d(12, 9, 2), **NEW),
    layer("ConvTranspose1d, square", lambda: nn.ConvTranspose1d(16, 16, 4, stride=2), at="conv_transpose"),
    layer("ConvTranspose1d, no bias", lambda: nn.ConvTranspose1d(24, 12, 4, bias=False), at="conv_transpose"),
    layer("ConvTranspose2d, grouped", lambda: nn.ConvTranspose2d(24, 16, 3, groups=4), **NEW),
    layer("ConvTranspose1d, depthwise", lambda: nn.ConvTranspose1d(16, 16, 4, groups=16), **NEW),
    layer("Conv2d that is called upsample", lambda: nn.Conv2d(12, 24, 3), at="upsample", **NEW),
    layer("Conv2d that is called conv_up1", lambda: nn.Conv2d(12, 24, 3), at="conv_up1", **NEW),
    layer("Embedding", lambda: nn.Embedding(40, 16, padding_idx=0), at="embedding"),
    layer("EmbeddingBag", lambda: nn.EmbeddingBag(40, 16, mode="sum"), at="embedding"),
    layer("MultiheadAttention", lambda: nn.MultiheadAttention(16, 4)),
    layer("MultiheadAttention, kdim and vdim", lambda: nn.MultiheadAttention(16, 4, kdim=12, vdim=10), **NEW),
    layer("MultiheadAttention, bias_k", lambda: nn.MultiheadAttention(16, 2, add_bias_kv=True)),
    layer("RNN", lambda: nn.RNN(12, 16)),
    layer("GRU", lambda: nn.GRU(12, 16, num_layers=2)),
    layer("LSTM", lambda: nn.LSTM(12, 16, num_layers=2)),
    layer("LSTM, bidirectional", lambda: nn.LSTM(12, 16, bidirectional=True)),
    layer("LSTM, projected", lambda: nn.LSTM(12, 16, proj_size=10)),
    layer("LSTM, projected and bidirectional", lambda: nn.LSTM(12, 16, 2, proj_size=10, bidirectional=True)),
    layer("GRU, bidirectional", lambda: nn.GRU(12, 16, 2, bidirectional=True)),
    layer("LSTMCell", lambda: nn.LSTMCell(12, 16)),
    layer("GRUCell", lambda: nn.GRUCell(12, 16)),
    layer("LayerNorm of two axes", lambda: nn.LayerNorm((16, 24)), never=["layer.weight", "layer.bias"], **NEW),
    layer("AdaptiveLogSoftmaxWithLoss", lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 40, [10, 20])),
    whole("TransformerEncoderLayer", lambda: Holder(layer=nn.TransformerEncoderLayer(16, 4, 24))),
    whole("TransformerEncoder", lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24), 3), blocks=3),
    whole("Transformer", lambda: nn.Transformer(16, 4, 2, 3, 24), blocks=5),
    whole("Linear without a name", lambda: nn.Linear(24, 16)),
    weight("weight norm, old, Linear", lambda: _old_norm(nn.Linear(24, 16)), **NEW),
    weight("weight norm, old, Conv1d", lambda: _old_norm(nn.Conv1d(12, 16, 3)), **NEW),
    weight("weight norm, old, ConvTranspose1d", lambda: _old_norm(nn.ConvTranspose1d(24, 12, 4)), **NEW),
    weight("weight norm, old, inputs", lambda: _old_norm(nn.Linear(24, 16), dim=1), **NEW),
    weight("weight norm, old, whole", lambda: _old_norm(nn.Linear(24, 16), dim=None), **NEW),
    weight("weight norm, old, kernel positions", lambda: _old_norm(nn.Conv1d(16, 32, 8, groups=2), dim=2), **NEW),
    weight("weight norm, old, LSTM", lambda: _old_norm(nn.LSTM(12, 16), "weight_hh_l0"), **NEW),
    weight("weight norm, new, Linear", lambda: parametrizations.weight_norm(nn.Linear(24, 16)), **NEW),
    weight("weight norm, new, Conv2d", lambda: parametrizations.weight_norm(nn.Conv2d(12, 16, 3)), **NEW),
    weight("weight norm, new, ConvTranspose1d",
           lambda: parametrizations.weight_norm(nn.ConvTranspose1d(24, 12, 4)), **NEW),
    weight("weight norm, new, kernel positions",
           lambda: parametrizations.weight_norm(nn.Conv1d(16, 32, 8, groups=2), dim=2), **NEW),
    weight("spectral norm, old, Linear", lambda: _old_spectral(nn.Linear(24, 16)), **NEW),
    weight("spectral norm, old, Conv2d", lambda: _old_spectral(nn.Conv2d(12, 16, 3)), **NEW),
    weight("spectral norm, old, ConvTranspose2d", lambda: _old_spectral(nn.ConvTranspose2d(24, 12, 3)), **NEW),
    weight("spectral norm, new, Linear", lambda: parametrizations.spectral_norm(nn.Linear(24, 16)), **NEW),
    weight("spectral norm, new, Conv2d", lambda: parametrizations.spectral_norm(nn.Conv2d(12, 16, 3)), **NEW),
    weight("orthogonal", lambda: parametrizations.orthogonal(nn.Linear(24, 16)), as_made=True, **NEW),
    weight("orthogonal, square", lambda: parametrizations.orthogonal(nn.Linear(16, 16)), as_made=True, **NEW),
    weight("orthogonal, Cayley", lambda: parametrizations.orthogonal(nn.Linear(24, 16), orthogonal_map="cayley"),
           as_made=True, **NEW),
    weight("a parametrization of one's own", _custom, refused="UNSUPPORTED", **NEW),
    weight("pruned by a mask", _pruned, **NEW),
    whole("DataParallel", lambda: nn.DataParallel(_mlp()), kind=WRAPPED),
    whole("AveragedModel", lambda: torch.optim.swa_utils.AveragedModel(_mlp()), kind=WRAPPED),
]  # fmt: skip
