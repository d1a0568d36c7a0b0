"""Tensors that are already in memory: a live module, or a mapping of arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.checkpoint import TensorSpec, code_of
from tailwise.checkpoints.formats.common import TensorStore, torch_dtype
from tailwise.checkpoints.wrapped import plain_name, unwrap
from tailwise.core.errors import UnreadableError, UsageError, lacks_memory

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class MemoryCheckpoint(TensorStore):
    """Tensors and arrays by name; nothing is copied until rows are read, and torch tensors not even then."""

    format = "memory"
    resident = True

    def __init__(self, uri: str, arrays: Mapping[str, Any], *, config: Mapping[str, Any] | None = None) -> None:
        self._arrays = dict(arrays)
        super().__init__(uri, {name: spec_of(name, a) for name, a in self._arrays.items()}, config=config)
        self.shared = shared_names(self._arrays)
        kinds = kinds_of(self._arrays)
        self.readings, self.unsupported, self.aside = kinds.readings, kinds.unsupported, kinds.aside
        self.read_whole = frozenset(self.readings)

    @classmethod
    def of_module(cls, module: torch.nn.Module) -> MemoryCheckpoint:
        """What the module computes with: its state dict, and in place of what parametrizations store their weights.

        Names are those without wrappers (DataParallel, DDP, torch.compile). The config is the first that a module
        inside has (as models of transformers have), and classes and adapters' scales are asked, not guessed.
        """
        inner = unwrap(module)
        stored = (pair for name, value in inner.state_dict().items() for pair in _opened(name, value))
        arrays = {plain_name(name): value for name, value in stored if is_array(value)}
        parts = {plain_name(name): part for name, part in inner.named_modules()}
        arrays = _with_weights_made(arrays, parts)
        checkpoint = cls(type(inner).__name__, arrays, config=config_of(inner))
        checkpoint.module_kinds = {name: class_of(part) for name, part in parts.items()}
        checkpoint.aside = _buffers_of(parts)
        checkpoint.module_scales = {name: scales for name, part in parts.items() if (scales := _adapters_of(part))}
        return checkpoint

    @classmethod
    def of_arrays(cls, arrays: Any) -> MemoryCheckpoint:
        """A mapping of arrays (nested mappings are joined with dots), or one array, named `weight`."""
        if is_array(arrays):
            return cls("array", {"weight": arrays})
        named: dict[str, Any] = {}
        for name, array in flatten(arrays):
            if name in named:
                raise UsageError(f"two arrays are named {name!r}", fix="rename one: nested keys are joined with dots")
            if not name.isprintable():
                raise UsageError(f"{name!r} is no name: it has characters that cannot be printed", fix="rename it")
            named[name] = array
        return cls("dict", named)

    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        array = self._arrays[spec.name]
        if spec.name in self.readings:
            return decoded(array, f"{self.uri}, tensor {spec.name}")[start : stop if spec.shape else None]
        torch_dtype(spec.dtype, where=f"{self.uri}, tensor {spec.name}")
        if getattr(getattr(array, "device", None), "type", None) == "meta":
            raise UnreadableError(
                "is on the meta device and has no values",
                where=f"{self.uri}, tensor {spec.name}",
                fix="load the weights first",
            )
        return as_tensor(array[start:stop] if spec.shape else array, spec.dtype)

    @override
    def close(self) -> None:
        super().close()
        self._arrays.clear()


def _opened(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """An entry of a state dict; the weight and the bias of what torch.ao keeps in a tuple."""
    if not isinstance(value, tuple):
        yield name, value
        return
    for number, item in enumerate(value):
        yield plain_names(f"{name}.{number}"), item


def _buffers_of(parts: Mapping[str, torch.nn.Module]) -> dict[str, str]:
    """Floating buffers of two axes or more, which no gradient moves; in modules with codes they are scales."""
    owners: dict[str, str] = {}
    for name, part in parts.items():
        buffers = {key: value for key, value in part.named_buffers(recurse=False) if value.ndim > 1}
        if any(not value.is_floating_point() for value in buffers.values()):
            continue
        for key in buffers:
            # Weights are made of some (masks, vectors of norms), and fixed positions are tables as learned ones are.
            if not key.startswith("weight") and "pos_embed" not in key:
                owners[f"{name}.{key}" if name else key] = "a buffer of its module, not a weight"
    return owners


def class_of(part: torch.nn.Module) -> str:
    """The class of a module; of a subclass of torch's layers, the layer that it is one of."""
    import torch

    name = type(part).__name__
    nn = torch.nn
    bases = (nn.Embedding, nn.EmbeddingBag, nn.Linear, nn.Bilinear, nn.ConvTranspose1d, nn.ConvTranspose2d,
             nn.ConvTranspose3d, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # fmt: skip
    if hasattr(part, "parametrizations"):  # torch makes a class of its own
        name = name.removeprefix("Parametrized")
    return next((base.__name__ for base in bases if isinstance(part, base)), name)


def config_of(module: torch.nn.Module) -> dict[str, Any] | None:
    """The config of the module, or of the first inside it that has one: Lightning's and other wrappers have none."""
    for part in module.modules():
        to_dict = getattr(getattr(part, "config", None), "to_dict", None)
        if callable(to_dict):
            config = to_dict()
            return config if isinstance(config, dict) else None
    return None


def _with_weights_made(arrays: dict[str, Any], parts: Mapping[str, torch.nn.Module]) -> dict[str, Any]:
    """The state dict with the weights that parametrizations make in place of what they are made of."""
    from torch.nn.utils import parametrize

    made: dict[str, Any] = {}
    inside: dict[str, list[str]] = {}
    for name, part in parts.items():
        if parametrize.is_parametrized(part):
            prefix = f"{name}." if name else ""
            changed: Any = part.parametrizations
            for tensor in changed:
                stored = f"{prefix}parametrizations.{tensor}."
                inside[f"{prefix}{tensor}"] = [key for key in arrays if key.startswith(stored)]
                made[f"{prefix}{tensor}"] = _asked(part, tensor)
    if not made:
        return arrays
    first = {keys[0]: name for name, keys in inside.items() if keys}
    gone = {key for keys in inside.values() for key in keys}
    tensors: dict[str, Any] = {}
    for key, value in arrays.items():
        if key in first:
            tensors[first[key]] = made[first[key]]
        elif key not in gone:
            tensors[key] = value
    return tensors


def _asked(part: Any, tensor: str) -> torch.Tensor:
    """A parametrized weight as in evaluation; the module is left as it was."""
    import torch

    inner = list(part.parametrizations[tensor].modules())
    modes = [module.training for module in inner]
    try:
        # In training, spectral norm moves its vectors each time the weight is asked for.
        for module in inner:
            module.training = False
        with torch.no_grad():
            weight: torch.Tensor = getattr(part, tensor).detach().clone()
    finally:
        for module, mode in zip(inner, modes, strict=True):
            module.training = mode
    return weight


def _adapters_of(part: Any) -> dict[str, float]:
    """Adapter → alpha of a layer of peft, from the scale that it multiplies with."""
    scaling, ranks = getattr(part, "scaling", None), getattr(part, "r", None)
    if not isinstance(scaling, Mapping) or not isinstance(ranks, Mapping):
        return {}
    known = (name for name in scaling if isinstance(ranks.get(name), int))
    return {str(name): float(scaling[name]) * ranks[name] for name in known}


def is_array(value: Any) -> bool:
    """Whether `value` is a torch tensor, a numpy array, or anything that turns into one (jax, …)."""
    try:
        return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__")
    except RuntimeError:  # a nested tensor of torch has no one shape, and says so in this way
        return False


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every array of nested mappings, named by its keys joined with dots."""
    if not isinstance(tree, Mapping):
        raise UsageError(
            f"{type(tree).__name__} is not a tensor, an array or a mapping of them",
            where=prefix.removesuffix(".") or None,
            fix="pass a path, a URL, a Hugging Face id, a torch.nn.Module or a dict of arrays",
        )
    for key, value in tree.items():
        if is_array(value):
            yield f"{prefix}{key}", value
        else:
            yield from flatten(value, f"{prefix}{key}.")


def spec_of(name: str, array: Any) -> TensorSpec:
    """The spec of an array in memory."""
    try:
        shape = tuple(int(size) for size in array.shape)
    except RuntimeError as error:
        raise UnreadableError(
            "is a nested tensor, which has no one shape", where=name, fix="save its parts apart: tensor.unbind()"
        ) from error
    # A sparse tensor has no nbytes; what it would take dense is what reading it would have to make.
    itemsize = getattr(array, "itemsize", None) or array.dtype.itemsize
    return TensorSpec(name, code_of(array.dtype), shape, prod(shape) * int(itemsize))


def shared_names(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Names of tensors with the memory, shape and strides of an earlier one, to the earlier one's name."""
    first: dict[tuple[Any, ...], str] = {}
    shared = {}
    for name, array in arrays.items():
        key = _memory(array)
        if key is not None and first.setdefault(key, name) != name:
            shared[name] = first[key]
    return shared


def _memory(array: Any) -> tuple[Any, ...] | None:
    import numpy as np
    import torch

    if isinstance(array, np.ndarray) and array.size:
        return array.__array_interface__["data"][0], array.shape, array.strides, str(array.dtype)
    if isinstance(array, torch.Tensor) and array.layout == torch.strided and array.numel():
        pointer = array.data_ptr()
        return (pointer, array.device, array.shape, array.stride(), array.dtype) if pointer else None
    return None


def as_tensor(array: Any, code: str) -> torch.Tensor:
    """`array` as a tensor of dtype `code`, sharing its memory where torch can."""
    import numpy as np
    import torch

    if isinstance(array, torch.Tensor):
        return array.detach()
    block: NDArray[np.generic] = np.asarray(array)
    if not block.dtype.isnative:
        block = block.astype(block.dtype.newbyteorder("="))
    # torch takes neither read-only memory nor negative strides; a block is small enough to copy.
    block = np.require(block, requirements=["C", "W"])
    if code == "BF16" or code.startswith("F8_"):  # dtypes of ml_dtypes, which torch does not know
        block = block.view(np.dtype(f"u{block.dtype.itemsize}"))
    return torch.from_numpy(block).view(torch_dtype(code, where="array"))


_FIX = "give the model before quantization, or save its weights dequantized: tensor.dequantize()"
#: A quantized Linear of torch.ao keeps weight and bias in a tuple.
_PACKED = re.compile(r"(?:(?<=\.)|^)_packed_params(?:\._packed_params)?\.([01])$")
_OUTPUT = ("scale", "zero_point")


@dataclass
class Kinds:
    """What the tensors of a file or of a model are, as `Checkpoint` has it."""

    readings: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)


def kinds_of(arrays: Mapping[str, Any]) -> Kinds:
    """Which arrays are dequantized when they are read, which cannot be, and what only belongs to them."""
    kinds = Kinds()
    for name, array in arrays.items():
        if reading := _reading(array):
            kinds.readings[name] = reading
            stem = name.removesuffix("weight")
            if reading == "torch.ao" and stem != name:
                beside = (f"{stem}{leaf}" for leaf in _OUTPUT)
                kinds.aside |= dict.fromkeys(
                    (other for other in beside if other in arrays), "of the layer's output: the weight has its own"
                )
        elif kind := _closed(array):
            kinds.unsupported[name] = f"{kind}, a tensor class that has no dequantize() of its own; {_FIX}"
    return kinds


def decoded(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """The real numbers that a tensor with a reading stands for, whole: (code − zero point) · scale in float32."""
    try:
        return tensor.detach().dequantize().detach()
    except Exception as error:  # the code of another library
        if lacks_memory(error):
            raise
        raise UnreadableError(
            f"{type(tensor).__name__} of {tensor.dtype} could not be dequantized: {str(error)[:200]}",
            where=where,
            fix=_FIX,
        ) from error


def plain_names(name: str) -> str:
    """The name of what torch.ao packs: `fc._packed_params._packed_params.0` is `fc.weight`, `.1` its bias."""
    return _PACKED.sub(lambda match: "bias" if match[1] == "1" else "weight", name)


def _reading(array: Any) -> str:
    import torch

    if not isinstance(array, torch.Tensor):
        return ""
    if array.is_quantized:
        return "torch.ao"
    maker = type(array).__module__.partition(".")[0]
    own = getattr(type(array), "dequantize", None) is not torch.Tensor.dequantize
    return (maker if maker == "torchao" else "dequantize") if own else ""


def _closed(array: Any) -> str:
    """The class of a tensor whose entries only its own library can get at; empty for others."""
    import torch

    kind = type(array)
    if not isinstance(array, torch.Tensor) or kind.__module__.partition(".")[0] == "torch":
        return ""
    opaque = getattr(kind, "__torch_dispatch__", None) not in (None, torch._C._disabled_torch_dispatch_impl)
    return f"is a {kind.__module__}.{kind.__name__}" if opaque else ""
