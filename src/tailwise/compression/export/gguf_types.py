"""Which type of GGUF holds a number format, and how near it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tailwise.compression.export.tool_plan import integers
from tailwise.number_formats.formats import parse_format

#: What a plan does not name. Most checkpoints are stored so, and then it changes nothing.
REST = "bf16"
SAME = "the same"
OWN_SCALES = "the same codes and groups; llama.cpp chooses its own scales"
NEAREST = "only the nearest by bits"

#: type → (inputs in a block, bits per weight).
_TYPES = {
    "f32": (1, 32.0), "f16": (1, 16.0), "bf16": (1, 16.0), "q8_0": (32, 8.5), "q6_k": (256, 6.5625),
    "q5_0": (32, 5.5), "q5_1": (32, 6.0), "q4_0": (32, 4.5), "q4_1": (32, 5.0), "iq4_nl": (32, 4.5),
    "mxfp4": (32, 4.25), "nvfp4": (64, 4.5), "q3_k": (256, 3.4375), "q2_k": (256, 2.625), "q4_k": (256, 4.5),
    "q5_k": (256, 5.5), "iq4_xs": (256, 4.25),
}  # fmt: skip
_OWN = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "bf16", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
)  # fmt: skip
_SAME = {
    **{name: name for name in _OWN},
    "fp16": "f16",
    "fp32": "f32",
}
_OWN_SCALES = {"int4-g32": "q4_0", "int8-g32": "q8_0"}
#: Base name, or bits of an integer format → types, the first whose blocks divide the inputs is taken.
_NEAREST: dict[str | int, tuple[str, ...]] = {
    2: ("q2_k", "q4_0"),
    3: ("q3_k", "q4_0"),
    4: ("q4_0",),
    8: ("q8_0",),
    "fp64": ("f32",),
    "fp8_e4m3": ("q8_0",),
    "fp8_e5m2": ("q8_0",),
    "mxfp8": ("q8_0",),
    "mxfp6": ("q6_k", "q8_0"),
    "nvfp4": ("nvfp4", "q4_0"),
    "nf4": ("iq4_nl",),
}


@dataclass(frozen=True)
class GgufType:
    """A type as `llama-quantize` names it."""

    name: str
    bits: float  # per weight, scales counted
    nearness: str  # SAME, OWN_SCALES or NEAREST


@lru_cache(maxsize=256)
def gguf_type(name: str, shape: tuple[int, ...]) -> GgufType | None:
    """The type for a format on a tensor of `shape`, inputs last; None where no block divides the inputs."""
    chosen = parse_format(name)
    # llama.cpp would fall back by itself; the notes then say which type it is.
    canonical = (chosen.fitting(shape[-1]) if shape else chosen).name
    for table, nearness in ((_SAME, SAME), (_OWN_SCALES, OWN_SCALES)):
        if canonical in table:
            return _fitting((table[canonical],), shape, nearness)
    parts = integers(parse_format(canonical))
    if parts is not None and parts.bits == 4 and not parts.symmetric:
        return _fitting(("q4_1",), shape, NEAREST)
    key = canonical.partition("-")[0] if parts is None else parts.bits
    return _fitting(_NEAREST.get(key, ()), shape, NEAREST)


def _fitting(types: tuple[str, ...], shape: tuple[int, ...], nearness: str) -> GgufType | None:
    for kind in types:
        block, bits = _TYPES[kind]
        if not shape or shape[-1] % block == 0:
            return GgufType(kind, bits, nearness)
    return None
