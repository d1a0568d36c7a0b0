from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from tailwise.core.errors import UsageError
from tailwise.number_formats.formats import FORMATS, parse_format

ALL = [
    *FORMATS,
    "fp8_e4m3-tensor",
    "fp8_e4m3-cast",
    "fp8_e5m2-tensor",
    "fp8_e5m2-cast",
    "int8-tensor",
    "int8-g64",
    "int8-asym-channel",
    "int8-asym-tensor",
    "int4-asym-g128",
    "int4-channel",
    "int4-g32",
    "int3-asym-g64",
    "int2-g16",
    "mxfp6-e3m2",
    "nf4-g128",
]


@pytest.mark.parametrize("name", ALL)
def test_a_canonical_name_gives_back_itself(name):
    assert parse_format(name).name == name


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("int4-sym", "int4"),
        ("int4-g128", "int4"),
        ("int4-g128-sym", "int4"),
        ("int4-asym", "int4-asym-g128"),
        ("int4-g128-asym", "int4-asym-g128"),
        ("int8-channel", "int8"),
        ("int8-asym", "int8-asym-channel"),
        ("fp8_e4m3-channel", "fp8_e4m3"),
        ("mxfp6-e2m3", "mxfp6"),
        ("mxfp4-e2m1", "mxfp4"),
        ("nf4-g64", "nf4"),
        (" BF16 ", "bf16"),
    ],
)
def test_defaults_and_order_do_not_make_another_format(text, canonical):
    assert parse_format(text).name == canonical
    assert parse_format(text) == parse_format(canonical)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int5", "did you mean int"),
        ("fp12", "no number format named 'fp12'"),
        ("", "no number format named ''"),
        ("int4-g0", "a group of 0 entries is none"),
        ("int4-g", "no suffix 'g' for int4"),
        ("int4-gx", "no suffix 'gx'"),
        ("int4-g-1", "no suffix 'g'"),
        ("int4-sym-asym", "sym and asym exclude each other"),
        ("int4-g64-g32", "g64 and g32 exclude each other"),
        ("int4-channel-g32", "channel and g32 exclude each other"),
        ("int4-cast", "no suffix 'cast' for int4"),
        ("bf16-asym", "bf16 takes no suffix"),
        ("fp8_e4m3-asym", "fp8_e4m3 takes channel, tensor, cast"),
        ("fp8_e4m3-g128", "no suffix 'g128'"),
        ("mxfp4-g16", "mxfp4 takes e2m1"),
        ("nvfp4-tensor", "nvfp4 takes no suffix"),
        ("nf4-tensor", "nf4 takes g<N>"),
        ("int4-", "no suffix ''"),
    ],
)
def test_a_name_that_cannot_be_is_an_error_that_says_why(text, says):
    with pytest.raises(UsageError) as error:
        parse_format(text)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ALL)
def test_a_format_is_hashable_and_survives_pickle(name):
    number_format = parse_format(name)
    again = pickle.loads(pickle.dumps(number_format))
    assert again == number_format
    assert hash(again) == hash(number_format)
    assert number_format.source


def test_names_and_sizes_need_no_torch():
    program = (
        "import sys; from tailwise.number_formats.formats import parse_format;"
        "parse_format('nvfp4').bits_per_weight(8, 64); parse_format('int4').bits_per_weight(8, 64);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp64", 64),
        ("fp32", 32),
        ("fp16", 16),
        ("bf16", 16),
        ("fp8_e4m3", 8 + 32 / 512),
        ("fp8_e4m3-tensor", 8 + 32 / (256 * 512)),
        ("fp8_e4m3-cast", 8),
        ("int8", 8 + 16 / 512),
        ("int8-asym-channel", 8 + 24 / 512),
        ("int8-tensor", 8 + 16 / (256 * 512)),
        ("int4", 4 + 16 / 128),
        ("int4-asym-g128", 4 + 20 / 128),
        ("int3-g64", 3 + 16 / 64),
        ("int2", 2 + 16 / 128),
        ("mxfp8", 8.25),
        ("mxfp6", 6.25),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5 + 32 / (256 * 512)),
        ("nf4", 4.5),
    ],
)
def test_bits_per_weight_count_scales_and_zero_points(name, bits):
    assert parse_format(name).bits_per_weight(256, 512) == pytest.approx(bits, rel=1e-12)


def test_a_shorter_last_group_has_a_whole_scale():
    assert parse_format("int4").bits_per_weight(10, 129) == pytest.approx(4 + 2 * 16 / 129)
    assert parse_format("mxfp4").bits_per_weight(1, 33) == pytest.approx(4 + 2 * 8 / 33)


def test_fewer_bits_are_fewer_with_their_scales():
    order = ["fp32", "bf16", "mxfp8", "int8", "mxfp6", "nvfp4", "mxfp4", "int4", "int3", "int2"]
    bits = [parse_format(name).bits_per_weight(4096, 4096) for name in order]
    assert bits == sorted(bits, reverse=True)


def test_group_sizes_are_told():
    sizes = {name: parse_format(name).group_size for name in ("int4", "nf4", "mxfp4", "nvfp4", "int8", "bf16")}
    assert sizes == {"int4": 128, "nf4": 64, "mxfp4": 32, "nvfp4": 16, "int8": None, "bf16": None}
