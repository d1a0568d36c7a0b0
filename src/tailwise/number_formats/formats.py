"""Names of number formats: "bf16", "fp8_e4m3", "int4-asym-g128", and what each means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.registry import Registry
from tailwise.core.synonyms import FORMATS as OTHER_NAMES
from tailwise.core.validation import checked
from tailwise.number_formats.casts import Float8Cast, PlainCast
from tailwise.number_formats.elements import Float8, Integer, MiniFloat, Unsigned, ValueTable
from tailwise.number_formats.ggml_blocks import BLOCK, BlockFormat, HalfBetween, HalfLargest, HalfSigned
from tailwise.number_formats.ggml_types import GgmlFormat
from tailwise.number_formats.number_format import NumberFormat
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.number_formats.scales import Asymmetric, LargestFloat32, PowerOfTwo, Symmetric, TwoLevel

#: 4-bit NormalFloat (Dettmers et al. 2023, QLoRA, appendix E): quantiles of a normal law, zero among them.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

#: Base names, and what each stores.
FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "fp64": "double precision",
        "fp32": "single precision",
        "fp16": "half precision: 5 bits of exponent, 10 of fraction",
        "bf16": "bfloat16: 8 bits of exponent, 7 of fraction",
        "fp8_e4m3": "8-bit float up to 448, a float32 scale per row (channel, tensor, cast)",
        "fp8_e5m2": "8-bit float up to 57344, a float32 scale per row (channel, tensor, cast)",
        "int8": "8-bit integer, a 16-bit scale per row (sym, asym; tensor, channel, g<N>)",
        "int4": "4-bit integer, a 16-bit scale per 128 entries (sym, asym; tensor, channel, g<N>)",
        "int3": "3-bit integer, a 16-bit scale per 128 entries (sym, asym; tensor, channel, g<N>)",
        "int2": "2-bit integer, a 16-bit scale per 128 entries (sym, asym; tensor, channel, g<N>)",
        "mxfp8": "OCP MX: e4m3 elements, a power of two per 32 entries",
        "mxfp6": "OCP MX: e2m3 (or e3m2) elements, a power of two per 32 entries",
        "mxfp4": "OCP MX: e2m1 elements, a power of two per 32 entries",
        "nvfp4": "e2m1 elements, an fp8 scale per 16 entries, a float32 scale per tensor",
        "nf4": "QLoRA's 16 normal quantiles, a float32 scale per 64 entries (g<N>)",
        "q4_0": "llama.cpp: 4-bit integer, a float16 scale per 32 entries",
        "q4_1": "llama.cpp: 4-bit integer, a float16 scale and lowest value per 32 entries",
        "q5_0": "llama.cpp: 5-bit integer, a float16 scale per 32 entries",
        "q5_1": "llama.cpp: 5-bit integer, a float16 scale and lowest value per 32 entries",
        "q8_0": "llama.cpp: 8-bit integer, a float16 scale per 32 entries",
        "q2_k": "llama.cpp: 2-bit codes, 4-bit scale and low per 16 entries, in blocks of 256",
        "q3_k": "llama.cpp: 3-bit codes, a 6-bit scale per 16 entries, in blocks of 256",
        "q4_k": "llama.cpp: 4-bit codes, 6-bit scale and low per 32 entries, in blocks of 256",
        "q5_k": "llama.cpp: 5-bit codes, 6-bit scale and low per 32 entries, in blocks of 256",
        "q6_k": "llama.cpp: 6-bit codes, an 8-bit scale per 16 entries, in blocks of 256",
        "iq4_nl": "llama.cpp: 16 values that are not evenly spaced, a float16 scale per 32 entries",
        "iq4_xs": "llama.cpp: the same, a 6-bit scale per 32 entries, in blocks of 256",
    }
)

Layout = Literal["tensor", "channel"] | int


@dataclass(frozen=True)
class NamedFormat:
    """A number format that was added: its name, what it stores, and what makes it."""

    name: str
    summary: str
    make: Callable[[], NumberFormat]


#: Formats beside those of `FORMATS`, by name.
ADDED: Registry[NamedFormat] = Registry("number format", "tailwise.number_formats", lambda: None)


def number_format(name: str) -> Callable[[Callable[[], NumberFormat]], Callable[[], NumberFormat]]:
    """Register the decorated function, which takes nothing and gives the format `name`, a frozen `NumberFormat`.

    The first line of its docstring is the summary. Studies, plans and `apply` know the name from then on, as do files
    that are read; where they are read without it, the name is unknown.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"{name!r} is no name of a format", fix="write small letters, digits and _, as int5")
    if name in FORMATS:
        raise UsageError(f"the number format {name!r} is built in", fix="choose another name")

    def register(make: Callable[[], NumberFormat]) -> Callable[[], NumberFormat]:
        made = make()
        if not isinstance(made, NumberFormat) or made.name != name:
            raise UsageError(f"what makes {name!r} gives {made!r}", fix=f"return a NumberFormat whose name is {name!r}")
        summary = (inspect.getdoc(make) or "").split("\n", 1)[0]
        ADDED.add(name, NamedFormat(name, summary, make), by=make.__module__)
        return make

    return register


def format_names() -> dict[str, str]:
    """Every base name, and what it stores."""
    return {**FORMATS, **{name: item.summary for name, item in ADDED.items()}}


_CASTS = {"fp64": ("float64", 64), "fp32": ("float32", 32), "fp16": ("float16", 16), "bf16": ("bfloat16", 16)}
_E2M1 = MiniFloat(exponent=2, mantissa=1)
_MX: dict[str, dict[str, MiniFloat | Float8]] = {
    "mxfp8": {"e4m3": Float8("float8_e4m3fn")},
    "mxfp6": {"e2m3": MiniFloat(2, 3), "e3m2": MiniFloat(3, 2)},
    "mxfp4": {"e2m1": _E2M1},
}


@checked
def parse_format(text: str) -> NumberFormat:
    """The format of a name: a base name of `FORMATS`, and suffixes in any order joined with "-".

    The canonical name is the base alone where all is default; else what differs, with the layout:
    "int4-sym-g128" is "int4", "int4-asym" is "int4-asym-g128".
    """
    return _parsed(text)


@lru_cache(maxsize=256)
def _parsed(text: str) -> NumberFormat:
    base, *suffixes = text.strip().lower().split("-")
    base = OTHER_NAMES.get(base, base)
    if (mix := re.fullmatch(r"(i?q[2-6]_k)_[sml]|(i?q[2-4])_[ml]", base)) is not None:
        fix = (
            "name its types, and a budget says how much of each: --formats q4_k,q5_k,q6_k --bytes SIZE; "
            "llama-quantize makes the mix itself"
        )
        raise UsageError(f"{mix[0].upper()} is a mix of types and no type", fix=fix)
    words = _Suffixes(text, suffixes)
    if base not in FORMATS and base in ADDED:
        words.finish(base)
        return ADDED[base].make()
    if base not in FORMATS:
        raise unknown_name("number format", base, format_names())
    made = _MAKERS[next(prefix for prefix in _MAKERS if base.startswith(prefix))](base, words)
    words.finish(base)
    return made


ADDED.when_changed(_parsed.cache_clear)


class _Suffixes:
    """The suffixes of a name, taken one by one; what is left over is an error."""

    def __init__(self, text: str, words: list[str]) -> None:
        self._text, self._left, self._allowed = text, words, list[str]()

    def one_of(self, *choices: str) -> str | None:
        """The one of `choices` that is given; None if none is."""
        self._allowed += choices
        return self._only([word for word in self._left if word in choices])

    def layout(self, *choices: str) -> Layout | None:
        """The one of `choices` that is given, or the N of `g<N>`; None if neither is."""
        self._allowed += [*choices, "g<N>"]
        word = self._only([word for word in self._left if word in choices or re.fullmatch(r"g[0-9]+", word)])
        if word is None or word in choices:
            return word  # type: ignore[return-value]
        if int(word[1:]) < 1:
            raise UsageError(f"a group of {word[1:]} entries is none", where=self._text, fix="write g128, say")
        return int(word[1:])

    def _only(self, suffixes: list[str]) -> str | None:
        if len(suffixes) > 1:
            raise UsageError(f"{' and '.join(suffixes)} exclude each other", where=self._text, fix="keep one of them")
        self._left = [word for word in self._left if word not in suffixes]
        return suffixes[0] if suffixes else None

    def finish(self, base: str) -> None:
        """A `UsageError` where a suffix was not taken."""
        if self._left:
            has = f"{base} takes {', '.join(self._allowed)}" if self._allowed else f"{base} takes no suffix"
            raise UsageError(f"there is no suffix {self._left[0]!r} for {base}", where=self._text, fix=has)


def _cast(base: str, words: _Suffixes) -> NumberFormat:
    del words
    dtype, bits = _CASTS[base]
    return PlainCast(base, f"torch's cast to {dtype}", dtype, bits)


def _fp8(base: str, words: _Suffixes) -> NumberFormat:
    element = Float8("float8_e4m3fn" if base == "fp8_e4m3" else "float8_e5m2")
    source = f"torch's cast to {element.dtype}"
    shared = words.one_of("channel", "tensor", "cast") or "channel"
    if shared == "cast":
        return Float8Cast(f"{base}-cast", source, element)
    name = base if shared == "channel" else f"{base}-tensor"
    layout: Layout = "tensor" if shared == "tensor" else "channel"
    rule = LargestFloat32(element.limits[1])
    return ScaledFormat(name, f"{source}, scales as torchao's Float8Tensor", element, rule, layout)


def _integer(base: str, words: _Suffixes) -> NumberFormat:
    bits = int(base.removeprefix("int"))
    asymmetric = words.one_of("sym", "asym") == "asym"
    default: Layout = "channel" if bits == 8 else 128
    shared = words.layout("tensor", "channel") or default
    name = base
    if asymmetric or shared != default:
        layout = f"g{shared}" if isinstance(shared, int) else shared
        name = "-".join([base, *(["asym"] if asymmetric else []), layout])
    rule = Asymmetric(bits) if asymmetric else Symmetric(bits)
    return ScaledFormat(name, "compressed-tensors' calculate_qparams and quantize", Integer(bits), rule, shared)


def _mx(base: str, words: _Suffixes) -> NumberFormat:
    elements = _MX[base]
    default = next(iter(elements))
    kind = words.one_of(*elements) or default
    name = base if kind == default else f"{base}-{kind}"
    element = elements[kind]
    return ScaledFormat(name, "OCP MX 1.0, floored scales, as torchao's to_mx", element, PowerOfTwo(element), 32)


def _nvfp4(base: str, words: _Suffixes) -> NumberFormat:
    del words
    source = "compressed-tensors' generate_gparam, calculate_qparams and quantize"
    return ScaledFormat(base, source, _E2M1, TwoLevel(_E2M1), 16)


def _nf4(base: str, words: _Suffixes) -> NumberFormat:
    shared = words.layout() or 64
    name = base if shared == 64 else f"{base}-g{shared}"
    return ScaledFormat(name, "the table of QLoRA, as in bitsandbytes", ValueTable(NF4), LargestFloat32(1.0), shared)


def _llama_cpp(base: str, words: _Suffixes) -> NumberFormat:
    del words
    if base in _GGML:
        return _ggml(base)
    bits, low = int(base[1]), base.endswith("_1")
    rule = HalfBetween(bits) if low else HalfLargest() if bits == 8 else HalfSigned(bits)
    return BlockFormat(
        base, "llama.cpp's blocks, as the gguf package", Unsigned(bits) if low else Integer(bits), rule, BLOCK
    )


#: Name → ggml's number, bits of a code, entries and bytes of a block, and what stands in where the block does not
#: divide a row.
_GGML: Mapping[str, tuple[int, int, int, int, str]] = MappingProxyType(
    {
        "q2_k": (10, 2, 256, 84, "iq4_nl"),
        "q3_k": (11, 3, 256, 110, "iq4_nl"),
        "q4_k": (12, 4, 256, 144, "q5_0"),
        "q5_k": (13, 5, 256, 176, "q5_1"),
        "q6_k": (14, 6, 256, 210, "q8_0"),
        "iq4_nl": (20, 4, BLOCK, 18, "fp16"),
        "iq4_xs": (23, 4, 256, 136, "iq4_nl"),
    }
)


def _ggml(base: str) -> NumberFormat:
    number, bits, block, nbytes, otherwise = _GGML[base]
    instead, plain = parse_format(otherwise), parse_format("fp16")
    return GgmlFormat(base, "ggml itself, decoded by the gguf package", number, bits, block, nbytes, instead, plain)


_MAKERS: Mapping[str, Callable[[str, _Suffixes], NumberFormat]] = {
    "fp8": _fp8,
    "int": _integer,
    "mx": _mx,
    "nvfp4": _nvfp4,
    "nf4": _nf4,
    "fp": _cast,
    "bf": _cast,
    "iq": _llama_cpp,
    "q": _llama_cpp,
}
