"""What no packing and no function claims: weights as they stand, tensors that are none, and what must be refused.

A floating tensor of 16 bits or more is a weight if every tensor beside it is known. Codes (integers, sub-byte floats)
are never weights. A tensor of an unknown name that could scale or mask its neighbour makes both unreadable: what the
module computes with is then not what is stored.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.readings.claim import Aside, Claim, Read, Refused, Siblings

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

_FP8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "FLOAT8_E4M3FNUZ", "FLOAT8_E5M2FNUZ"})
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "C64", "C128"})
_CODES = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})
_SUB_BYTE = {
    "F4": "floats of 4 bits (E2M1, two in a byte)", "F6_E2M3": "floats of 6 bits", "F6_E3M2": "floats of 6 bits",
    "F8_E8M0": "powers of two of 8 bits", "I4": "integers of 4 bits", "U4": "integers of 4 bits",
}  # fmt: skip

#: Leaves that say nothing of the weight beside them.
_NEUTRAL = re.compile(
    r"(?:^|[._])(?:bias(?:es)?(?:_\w+)?|\w*norm\w*|ln(?:_\w+|\d+)?|bn\d*|running_(?:mean|var)|num_batches_tracked"
    r"|(?:input|output|in|out|act|activation|x|y|q|k|v|kv|prob|softmax|state)_(?:scale\w*|amax|a?max|min|zero_point"
    r"|global_scale|quant\w*)|(?:scale|zero_point|amax)_(?:input|output|in|out|act)"
    r"|_extra_state|inv_freq|rope_\w+|cos|sin|cos_cached|sin_cached|freqs(?:_cis)?|beta|gamma|layer_scale\w*|lambda_?\w*"
    r"|noise_(?:strength|const)|logit_scale|embed_scale|sinks?|A_log|D|dt_bias|resample_filter|eps|std|mean"
    r"|qscale_act|comfy_quant|\w*embedding|\w*_token|input_(?:min|max)|output_(?:min|max)|attn_mask|causal_mask|masked_bias|g_idx|\w*_ids|\w*_?index|window)$"
)
#: In the name of a bare parameter's neighbour: what makes it the parameter's own scale.
_SCALES = re.compile(r"(?:scale|zero|absmax|amax|quant|qmap|codebook|lut|mask|offset)")
_INDICES = re.compile(
    r"(?:ids|index|indices|idx|mask|buckets?|tracked|coords_table|perm|counts?|step|steps|positions?)$"
)
#: Buffers by the names that code gives them: masks, filter banks, tables of sines, averages, queues.
_BUFFERS = re.compile(
    r"(?:^|\.)(?:\w*attn_mask|causal_mask|mask|tril|queue|fb|mel_(?:basis|filters|fb)|filterbank|(?:forward|inverse)_basis"
    r"|(?:pos\w*enc\w*|positional_encoding)\.pe|(?:rotary\w*|rope\w*)\.(?:sin|cos)|(?:sin|cos)_cached|embed_avg|ema_w"
    r"|ema_embed|slope_rate|(?:query|key|diagonal)_decay|hann_window|dft_(?:real|imag))$"
)
_MOMENTS = re.compile(
    r"(?:^|[._])(?:exp_avg(?:_sq)?(?:_row|_col)?|max_exp_avg_sq|momentum_buffer|square_avg|acc_delta|grad_avg|exp_inf)$"
)
#: Names that packings give to what holds a layer's codes.
_CODE_NAMES = re.compile(
    r"(?:^|[._])(?:\w*q?weight\w*|W_q|codes|trellis|Qidxs|codebooks?|\w*packed|\w*qdata|_data|data)$"
)
#: Tensors of one module, each of which is held against all others: files of names without dots have more.
_MOST_BESIDE = 1000
_MAKERS = (
    (("trellis", "suh", "svh"), "ExLlamaV3"), (("q_weight", "q_invperm"), "ExLlamaV2"), (("codes", "codebooks"),
    "AQLM"),
    (("Qidxs", "SU"), "QuIP#"), (("W_q",), "HQQ"), (("wscales",), "nunchaku"), (("smooth_factor",), "nunchaku"),
    (("centroids",), "VPTQ"), (("pre_quant_scale",), "ModelOpt AWQ"), (("tables",), "HIGGS"),
)  # fmt: skip


def find(group: Siblings, checkpoint: Checkpoint, left: Mapping[str, TensorSpec]) -> Iterator[Claim]:
    """A claim for every leaf of `left`: what of the module no other reading has claimed."""
    if sum(not is_neutral(leaf) for leaf in left) < 2:
        yield from (_single(group, leaf, spec, checkpoint) for leaf, spec in left.items())
        return
    done: set[str] = set()
    ordered = sorted(left)
    for leaf, spec in left.items():
        if leaf in done or len(spec.shape) < 2:  # which neither of both looks at
            continue
        others = left if len(left) <= _MOST_BESIDE else _named_after(leaf, ordered)
        beside = {other: left[other] for other in others if other != leaf and other not in done}
        claim = _codes(group, leaf, spec, beside, checkpoint) or _scaled_by_unknown(leaf, spec, beside)
        if claim is not None:
            yield claim
            done.update(name for name in left if left[name].name in claim.members)
    for leaf, spec in left.items():
        if leaf not in done:
            yield _single(group, leaf, spec, checkpoint)


def _named_after(leaf: str, ordered: Sequence[str]) -> Iterator[str]:
    """The names of a sorted list that are made of a leaf's."""
    for start in dict.fromkeys((f"{leaf}_", f"{leaf}.", f"{leaf.removesuffix('_weight')}_")):
        for index in range(bisect_left(ordered, start), len(ordered)):
            if not ordered[index].startswith(start):
                break
            yield ordered[index]


@lru_cache(maxsize=4096)
def is_neutral(leaf: str) -> bool:
    """Whether a name is known not to change the weight beside it."""
    return _NEUTRAL.search(leaf) is not None


def _single(group: Siblings, leaf: str, spec: TensorSpec, checkpoint: Checkpoint) -> Claim:
    """A tensor that its neighbours say nothing of."""
    if _MOMENTS.search(leaf):
        return Aside((spec.name,), "a moment that an optimizer keeps, not a weight")
    if _BUFFERS.search(spec.name):
        return Aside((spec.name,), "a buffer by its name (a mask, a filter bank, an average, a queue), not a weight")
    if group.module.endswith(".original_module"):
        return Aside((spec.name,), "what an adapter's modules_to_save stands in for")
    if len(spec.shape) >= 2 and spec.name not in checkpoint.readings:
        if spec.dtype in _FP8:
            note = "stored as fp8 without scales beside it: the values are taken as they are"
            return Read(spec.name, (spec.name,), note=note)
        centroids = group.module.endswith("centroids") and _method(checkpoint) is not None
        if centroids or spec.dtype in _SUB_BYTE or (spec.dtype in _CODES and _holds_codes(leaf, checkpoint)):
            return Refused((spec.name,), _looks_like(group, spec, checkpoint))
    return Read(spec.name, (spec.name,))


def _holds_codes(leaf: str, checkpoint: Checkpoint) -> bool:
    """Whether integers of two axes are a weight's codes rather than indices or masks."""
    if _INDICES.search(leaf) or is_neutral(leaf):
        return False
    return _CODE_NAMES.search(leaf) is not None or _method(checkpoint) is not None


def _codes(
    group: Siblings, leaf: str, spec: TensorSpec, beside: Mapping[str, TensorSpec], checkpoint: Checkpoint
) -> Claim | None:
    """Codes that no packing claims, with everything of their module that could belong to them."""
    integers = (spec.dtype in _CODES or spec.dtype in _SUB_BYTE) and len(spec.shape) >= 2
    known = _maker(group) is not None
    if not integers or (not known and (_INDICES.search(leaf) or is_neutral(leaf))):
        return None
    named = [other for other in beside if _is_named_after(other, leaf)]
    own = named or [other for other in beside if not other.startswith("bias")]
    scales = [other for other in own if beside[other].dtype in _FLOATS | _FP8 or _SCALES.search(other)]
    if not scales and not _holds_codes(leaf, checkpoint):
        return None
    return Refused((spec.name, *(beside[other].name for other in own)), _looks_like(group, spec, checkpoint))


def _looks_like(group: Siblings, spec: TensorSpec, checkpoint: Checkpoint) -> str:
    maker = _maker(group) or _method(checkpoint) or "an unknown method"
    if spec.dtype in _SUB_BYTE and maker == "an unknown method":
        return (
            f"{spec.dtype}, {_SUB_BYTE[spec.dtype]}: codes that mean nothing without their scales, and no scales of a "
            "known name lie beside them; audit the model before quantization"
        )
    return (
        f"weights packed by {maker} ({spec.dtype} codes) in a layout that is not known here; "
        "audit the model before quantization, or save it dequantized (transformers dequantize())"
    )


def _maker(group: Siblings) -> str | None:
    """The tool whose names the module's tensors have."""
    return next((name for marks, name in _MAKERS if any(mark in group.leaves for mark in marks)), None)


def _method(checkpoint: Checkpoint) -> str | None:
    settings: Any = checkpoint.config.get("quantization_config")
    return str(settings.get("quant_method", "?")) if isinstance(settings, Mapping) and settings else None


def _scaled_by_unknown(leaf: str, spec: TensorSpec, beside: Mapping[str, TensorSpec]) -> Claim | None:
    """A weight beside a tensor of an unknown name that could scale or mask it, and that tensor."""
    if len(spec.shape) < 2 or spec.dtype not in _FLOATS | _FP8 or is_neutral(leaf):
        return None
    low = spec.dtype in _FP8
    scales = [
        other
        for other, scale in beside.items()
        if not is_neutral(other) and _belongs(other, leaf, low=low) and _could_scale(scale, spec, other)
    ]
    if not scales:
        return None
    shapes = ", ".join(f"{other} {list(beside[other].shape)}" for other in scales)
    what = "fp8 codes" if low else "a weight"
    return Refused(
        (spec.name, *(beside[other].name for other in scales)),
        f"{what} of shape {list(spec.shape)} beside what could scale it under a name that is not known here "
        f"({shapes}); save the weight as the module computes with it, or audit the live module",
    )


def _belongs(other: str, leaf: str, *, low: bool) -> bool:
    """Whether a neighbour's name ties it to a weight: anything in a module of one `weight`, else a name made of its."""
    if leaf == "weight":
        return True
    if _is_named_after(other, leaf):
        return _SCALES.search(other.removeprefix(leaf)) is not None
    return low and _SCALES.search(other) is not None


def _is_named_after(other: str, leaf: str) -> bool:
    stem = leaf.removesuffix("_weight")
    return other.startswith((f"{leaf}_", f"{leaf}.", f"{stem}_")) and other != leaf


def _could_scale(scale: TensorSpec, weight: TensorSpec, name: str) -> bool:
    """Whether the shape of a tensor allows that it multiplies the other, entry by entry, by rows, columns or blocks."""
    if scale.dtype not in _FLOATS | _FP8 | {"F8_E8M0", "U8", "BOOL"} or 0 in scale.shape or 0 in weight.shape:
        return False
    count = prod(scale.shape)
    if scale.shape == weight.shape:
        return scale.dtype in ("BOOL", "U8") or _SCALES.search(name) is not None
    if count == 1 or (max(scale.shape) == count and count in weight.shape):
        return True
    if count >= prod(weight.shape) or len(scale.shape) != len(weight.shape):
        return len(scale.shape) == 1 and prod(weight.shape) % count == 0 and prod(weight.shape) // count >= 16
    return all(part <= size for part, size in zip(scale.shape, weight.shape, strict=True)) and (
        count * 8 <= prod(weight.shape)
    )
