"""compressed-tensors (llm-compressor, vLLM): decoded by that library, the optional `packed` extra.

Its fp8 weights are plain and are left to the fp8 codec, so that they need no extra.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.readings.claim import Claim, Read, Refused, Siblings
from tailwise.core.errors import UnreadableError
from tailwise.core.harmless import pattern_from_file
from tailwise.core.optional import how_to_get, missing

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

_SUFFIXES = (
    "weight_packed",
    "weight",
    "weight_scale",
    "weight_zero_point",
    "weight_global_scale",
    "weight_shape",
    "weight_g_idx",
)
_MISSING = f"weights packed by compressed-tensors; to read them: {how_to_get('packed')}"
_MOST_AXES = 4  # of a weight
_LEGACY = frozenset({"marlin-24", "sparse-24-bitmask", "sparse-bitmask"})


@dataclass(frozen=True)
class Compressed:
    """One module's packed weight, decoded to (out × in)."""

    module: str
    shape: tuple[int, ...]
    members: tuple[str, ...]
    format: str  # the library's name of the layout
    weights: Mapping[str, Any] = field(hash=False)  # the library's QuantizationArgs, as in config.json
    by_rows: bool = False

    @property
    def dtype(self) -> str:
        """`CT_INT4` and the like."""
        return f"CT_{str(self.weights.get('type', 'int')).upper()}{self.weights.get('num_bits', '')}"

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows of W, float32: scales are widened first, so nothing is rounded to their dtype."""
        import torch
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        state = {name.removeprefix(f"{self.module}."): checkpoint.read(name) for name in self.members}
        if state["weight_scale"].dtype in (torch.float16, torch.bfloat16):
            state["weight_scale"] = state["weight_scale"].to(torch.float32)
        try:
            args = QuantizationArgs.model_validate(dict(self.weights))
            scheme = QuantizationScheme(targets=["Linear"], weights=args)
            codec = BaseCompressor.get_value_from_registry(self.format)
            weight: torch.Tensor = codec.decompress(state, scheme)["weight"]
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            fix = "its config and its tensors do not fit each other: save the model again"
            raise UnreadableError(
                f"compressed-tensors cannot decode it: {reason}", where=self.module, fix=fix
            ) from error
        return weight.to(torch.float32)[start:stop]


def find(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """A weight packed by the library; without it, or in a layout it has dropped, the reason."""
    leaf = "weight_packed" if "weight_packed" in group.leaves else "weight"
    spec = group.leaves.get(leaf)
    if spec is None or (leaf == "weight" and spec.dtype not in ("I8", "U8")):
        return
    if (settings := settings_of(checkpoint)) is None:
        return
    scheme = _group_of(group.module, settings)
    layout = str(scheme.get("format") or settings.get("format", ""))
    members = group.pick(leaf, *(suffix for suffix in _SUFFIXES if suffix != leaf))
    if layout in _LEGACY or not scheme.get("weights") or "weight_scale" not in group.leaves:
        everything = group.pick(*(other for other in group.leaves if other != "bias"))
        yield Refused(everything, f"compressed-tensors layout {layout!r}; audit the model before compression")
    elif missing("compressed_tensors"):
        yield Refused(members, _MISSING)
    else:
        shape = _shape(checkpoint, spec, group, scheme["weights"])
        if why := _misfit(shape, spec, group, scheme["weights"]):
            yield Refused(members, why)
            return
        codec = Compressed(group.module, shape, members, layout, scheme["weights"])
        yield Read(group.named("weight"), members, codec)


def settings_of(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """What config.json says, where it names this library."""
    settings = checkpoint.config.get("quantization_config") or checkpoint.config.get("compression_config")
    named = isinstance(settings, Mapping) and settings.get("quant_method") == "compressed-tensors"
    return settings if isinstance(settings, Mapping) and named else None


def _shape(checkpoint: Checkpoint, spec: TensorSpec, group: Siblings, weights: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of the decoded weight; two integers are read where the packing has padded it away."""
    if (stored := group.leaves.get("weight_shape")) is not None:
        if stored.numel > _MOST_AXES or not stored.dtype.startswith(("I", "U")):
            raise _unusable(group.module, "weight_shape is no shape")
        return tuple(checkpoint.read(stored.name).flatten().tolist())
    if spec.name.endswith("weight_packed") and spec.shape:
        bits = weights.get("num_bits", 4)
        word = 32 if spec.dtype == "I32" else 8
        if not isinstance(bits, int) or not 0 < bits <= word:
            raise _unusable(group.module, f"num_bits is {bits!r:.80}, and a number from 1 to {word} was expected")
        return (*spec.shape[:-1], spec.shape[-1] * word // bits)
    return spec.shape


def _misfit(shape: tuple[int, ...], spec: TensorSpec, group: Siblings, weights: Mapping[str, Any]) -> str:
    """Why a weight of this shape cannot be what is stored; "" where it can. The library spreads whatever it gets."""
    if len(shape) < 2 or min(shape) < 1:
        return f"its shape is {list(shape)}, and that of a matrix was expected"
    bits = weights.get("num_bits", 8)
    codes = spec.nbytes * 8 // bits if isinstance(bits, int) and bits > 0 else spec.numel
    if prod(shape) > max(codes, spec.numel):
        return f"its shape is {list(shape)}, and its codes are enough for {codes} entries"
    for leaf in ("weight_scale", "weight_zero_point", "weight_g_idx"):
        beside = group.leaves.get(leaf)
        if beside is not None and (len(beside.shape) > len(shape) or beside.numel > prod(shape)):
            return f"its {leaf} is {list(beside.shape)}, and the weight {list(shape)}"
    return ""


def _group_of(module: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization scheme that names the module: by full name, by regular expression, or by class."""
    groups = _groups(module, settings)
    for group, targets in groups:
        if any(_names(target, module) for target in targets):
            return group
    by_class = [group for group, targets in groups if "Linear" in targets]
    return next(iter(by_class or [group for group, _ in groups]), {})


def _groups(module: str, settings: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], tuple[str, ...]]]:
    """Each scheme with what it is for; their kinds are checked, for anyone may have written them."""
    named = settings.get("config_groups", {})
    if not isinstance(named, Mapping):
        raise _unusable(module, f"config_groups is {type(named).__name__}, and schemes by name were expected")
    groups = []
    for name, group in named.items():
        if not isinstance(group, Mapping):
            continue  # a preset, which is no scheme for weights
        targets = group.get("targets", ())
        if not isinstance(targets, list | tuple) or not all(isinstance(target, str) for target in targets):
            raise _unusable(module, f"the targets of {str(name)[:80]!r} are no list of names")
        if not isinstance(group.get("weights") or {}, Mapping):
            raise _unusable(module, f"the weights of {str(name)[:80]!r} are no settings by name")
        groups.append((group, tuple(targets)))
    return groups


def _names(target: str, module: str) -> bool:
    if target.startswith("re:"):
        try:
            return pattern_from_file(target.removeprefix("re:")).match(module)
        except ValueError as error:
            raise _unusable(module, f"the target {target[:80]!r} cannot be used: {error}") from error
    return target == module


def _unusable(module: str, what: str) -> UnreadableError:
    return UnreadableError(what, where=module, fix="correct quantization_config in config.json")
