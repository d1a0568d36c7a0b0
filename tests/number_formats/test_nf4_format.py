"""NF4 against torchao, bitsandbytes' thresholds and a search through the table."""

from __future__ import annotations

import pytest
import torch

from tailwise.number_formats.elements import ValueTable
from tailwise.number_formats.formats import NF4, parse_format
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.number_formats.scales import LargestFloat32

#: Where bitsandbytes' kernel goes up to the next code (`dQuantizeNF4`, csrc/kernels.cu), ascending.
THRESHOLDS = (
    -0.8480964004993439,
    -0.6106329262256622,
    -0.4599952697753906,
    -0.33967943489551544,
    -0.23460740596055984,
    -0.13791173323988914,
    -0.045525018125772476,
    0.03979014977812767,
    0.1202552504837513,
    0.2035212516784668,
    0.2920137718319893,
    0.3893125355243683,
    0.5016634166240692,
    0.6427869200706482,
    0.8614784181118011,
)


def test_codes_change_where_bitsandbytes_has_its_thresholds():
    at = torch.tensor(THRESHOLDS, dtype=torch.float32)
    codes = torch.arange(15, dtype=torch.uint8)
    assert torch.equal(ValueTable(NF4).codes(at - 1e-6), codes)
    assert torch.equal(ValueTable(NF4).codes(at + 1e-6), codes + 1)


def test_every_number_goes_to_the_nearest_of_the_table():
    numbers = torch.linspace(-1, 1, 20_001)
    nearest = (numbers[:, None].double() - torch.tensor(NF4, dtype=torch.float64)).abs().argmin(1)
    assert torch.equal(ValueTable(NF4).codes(numbers).long(), nearest)
    assert torch.equal(ValueTable(NF4).round_(numbers.clone()), torch.tensor(NF4)[nearest])


@pytest.mark.parametrize("kind", ["normal", "heavy", "scales"])
def test_codes_are_torchaos_with_its_rounded_table(kind, make):
    pytest.importorskip("torchao")
    from torchao.quantization import to_nf4

    matrix = make(kind)
    theirs = to_nf4(matrix, 64, 4)
    rounded = ScaledFormat("nf4", "torchao", ValueTable(tuple(theirs.nf4.tolist())), LargestFloat32(1.0), 64)
    codes = rounded.quantize(matrix).codes
    assert torch.equal((codes[:, ::2] << 4 | codes[:, 1::2]).flatten(), theirs.quantized_data.flatten())


def test_the_largest_of_a_block_is_exact(make):
    matrix = make("normal")
    done = parse_format("nf4").quantize(matrix)
    blocks, rounded = matrix.unflatten(1, (-1, 64)), done.values.unflatten(1, (-1, 64))
    assert torch.equal(done.scales, blocks.abs().amax(-1))
    assert torch.equal(rounded.abs().amax(-1), blocks.abs().amax(-1))
    assert done.overflow == 0
