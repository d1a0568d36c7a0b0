"""What an ONNX graph says of its constants: which are weights, of which operator, and under which name.

Nothing is computed and no operator is built: nodes are looked at for the constants among their inputs.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Names that exporters make up; the path in the name of the node that uses the constant says more.
_MADE_UP = re.compile(
    r"onnx::\w+|(?:val|const|_v|t)_?\d+|\d+|/.*|.*Constant(?:_\d+)?(?:_output_\d+)?|.*/ReadVariableOp.*"
)
_PASS_ON = frozenset({"Identity", "Cast", "Transpose"})
#: Operator → position of its weight, and the kind of module that it is. The position of scales follows.
_PRODUCTS = {"MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "QGemm": 3,
             "Attention": 1}  # fmt: skip
_BLOCKS = "MatMulNBits"  # of ONNX Runtime: codes of few bits in blocks along the inputs, packed into bytes
_TABLE = "GatherBlockQuantized"  # of ONNX Runtime: a table of such codes, one row of them for each index
_KERNELS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
_BYTES = 2  # TensorProto.UINT8
_RECURRENT = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # where torch's gates lie among ONNX's
_SCALES = {"QLinearMatMul": (4, 5), "QLinearConv": (4, 5), "QGemm": (4, 5), "DequantizeLinear": (1, 2)}


@dataclass
class Constant:
    """A constant of the graph: an initializer, or the value of a Constant node."""

    name: str  # unique in the file
    proto: Any
    kind: str = ""  # Linear, MatMul, Conv2d, ConvTranspose2d, Embedding, LSTM, GRU, RNN; empty: no weight of a module
    user: str = ""  # name of the node that uses it
    gates: tuple[int, ...] = ()  # recurrent: blocks of ONNX in torch's order
    recurrent: str = ""  # ih, hh or bias
    made: bool = False  # by a Constant node, which also makes shapes and initial states
    scale: Constant | None = None  # of codes: (code − zero) · scale
    zero: Constant | None = None
    axis: int = 1
    block: int = 0
    packed: tuple[int, int, int] | None = None  # rows, columns and bits of codes that are packed into bytes


def text_of(name: str | bytes) -> str:
    """A name of the file as text: protobuf gives bytes where it is none."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name


@dataclass(frozen=True)
class _Value:
    constant: Constant
    transposed: bool = False


#: Name → value, of a graph and those around it.
_Scope = ChainMap[str, _Value]


@dataclass
class _Walk:
    found: dict[str, Constant] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)  # name → how many constants have it

    def graph(self, graph: Any, outer: _Scope, path: str) -> None:
        scope = outer.new_child()  # a copy for each of a hundred thousand inner graphs would have no end
        for proto in graph.initializer:
            scope[proto.name] = _Value(self.add(proto.name, proto, path))
        for node in graph.node:
            self.node(node, scope, path)

    def add(self, name: str, proto: Any, path: str) -> Constant:
        unique = text_of(name) or "constant"
        if unique in self.found and path:
            unique = f"{path}.{unique}"
        # Not from 1 each time: a small file may give one name to a hundred thousand constants.
        stem, count = unique, self.times.get(unique, 1)
        while unique in self.found:
            count += 1
            unique = f"{stem}_{count}"
        self.times[stem] = count
        self.found[unique] = Constant(unique, proto)
        return self.found[unique]

    def node(self, node: Any, scope: _Scope, path: str) -> None:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                # Small constants are shapes, axes and scalars.
                if attribute.name == "value" and len(attribute.t.dims) > 1:
                    scope[node.output[0]] = _Value(self.add(node.output[0], attribute.t, path))
                    scope[node.output[0]].constant.made = True
            return
        inputs = [scope.get(name) for name in node.input]
        if any(inputs):
            self.use(node, inputs, scope)
        for number, attribute in enumerate(node.attribute):
            for graph in [attribute.g, *attribute.graphs]:
                if graph.node:
                    self.graph(graph, scope, _path(text_of(node.name)) or f"{node.op_type}{number}")

    def use(self, node: Any, inputs: list[_Value | None], scope: _Scope) -> None:
        if not node.output:  # it gives nothing to anybody
            return
        op, first = node.op_type, inputs[0]
        if op in _PASS_ON and first is not None:
            turned = op == "Transpose" and len(first.constant.proto.dims) == 2
            if op != "Transpose" or turned:
                scope[node.output[0]] = _Value(first.constant, first.transposed ^ turned)
            return
        if op in _SCALES:
            place = 0 if op == "DequantizeLinear" else _PRODUCTS.get(op, _KERNELS.get(op, 0))
            _give_scales(inputs, place, _SCALES[op], _attributes(node))
        if op == _BLOCKS:
            _take_blocks(inputs, node)
            return
        if op == _TABLE:
            _take_table(inputs, node)
            return
        if op == "DequantizeLinear":
            if first is not None:
                scope[node.output[0]] = first
            return
        for place, value in enumerate(inputs):
            if value is not None and not value.constant.kind:
                _claim(value, node, place)
            if value is not None and place == 3 and op in _RECURRENT:
                value.constant.recurrent, value.constant.user = "bias", text_of(node.name or node.output[0])


def constants_of(model: Any) -> dict[str, Constant]:
    """Every constant of the model's graph and of the graphs within it, by a unique name.

    Scales and zeros of codes belong to these and are not listed beside them.
    """
    walk = _Walk()
    walk.graph(model.graph, ChainMap(), "")
    for constant in list(walk.found.values()):
        _scales_by_name(constant, walk.found)
    coded = [constant for constant in walk.found.values() if constant.scale is not None]
    part = {id(other) for constant in coded for other in (constant.scale, constant.zero)}
    return {
        name: constant
        for name, constant in walk.found.items()
        if id(constant) not in part and (constant.kind or not constant.made)
    }


def _claim(value: _Value, node: Any, place: int) -> None:
    """Note what the node says of a constant that it uses."""
    kind = _kind(value, node, place)
    if not kind:
        return
    constant = value.constant
    constant.kind, constant.user = kind, text_of(node.name or (node.output[0] if kind in _RECURRENT else ""))
    if node.op_type in _RECURRENT:
        constant.gates, constant.recurrent = _RECURRENT[node.op_type], "ih" if place == 1 else "hh"


def _kind(value: _Value, node: Any, place: int) -> str:
    op, axes = node.op_type, len(value.constant.proto.dims)
    if op in _PRODUCTS and axes >= 2:
        stored_out_in = value.transposed ^ bool(_attributes(node).get("transB", 0)) ^ (place == 0)
        return "Linear" if stored_out_in else "MatMul"
    if place == _KERNELS.get(op) and axes > 2:
        return f"{'ConvTranspose' if op == 'ConvTranspose' else 'Conv'}{axes - 2}d"
    if op == "Einsum" and axes == 2:
        return "MatMul"
    if op == "Gather" and place == 0 and axes == 2 and not _attributes(node).get("axis", 0):
        return "Embedding"
    return op if op in _RECURRENT and place in (1, 2) and axes == 3 else ""


def _give_scales(inputs: list[_Value | None], place: int, scales: tuple[int, int], attributes: dict[str, int]) -> None:
    value, *of_scales = (inputs[i] if i < len(inputs) else None for i in (place, *scales))
    constants = [None if item is None else item.constant for item in of_scales]
    if value is None or constants[0] is None:
        return
    code = value.constant
    code.scale, code.zero = constants
    code.axis = attributes.get("axis", 1) if place == 0 else 0 if len(code.proto.dims) > 2 else 1
    code.block = attributes.get("block_size", 0)


def _take_blocks(inputs: list[_Value | None], node: Any) -> None:
    """The packed weight of MatMulNBits (N × blocks × bytes), its scales and its zeros."""
    constants = [value.constant if value is not None else None for value in (*inputs, None, None, None)]
    codes, scale, zero, groups = constants[1], constants[2], constants[3], constants[4]
    attributes = _attributes(node)
    if codes is None or codes.kind or groups is not None:
        return
    codes.kind, codes.user, codes.scale, codes.zero = "Linear", text_of(node.name), scale, zero
    codes.packed, codes.block = (
        (attributes.get("N", 0), attributes.get("K", 0), attributes.get("bits", 4)),
        attributes.get("block_size", 0),
    )


def _take_table(inputs: list[_Value | None], node: Any) -> None:
    """The table of GatherBlockQuantized, its scales and its zeros.

    Codes of U4 and I4 are two-dimensional as they are; bytes hold several along the last axis, as in MatMulNBits.
    """
    constants = [value.constant if value is not None else None for value in (*inputs, None, None)]
    codes, scale, zero = constants[0], constants[2], constants[3]
    attributes = _attributes(node)
    if codes is None or scale is None or codes.kind or attributes.get("gather_axis", 0) != 0:
        return
    codes.kind, codes.user, codes.scale, codes.zero = "Embedding", text_of(node.name), scale, zero
    axis, codes.block = attributes.get("quantize_axis", 1), attributes.get("block_size", 128)
    dims, bits = [int(size) for size in codes.proto.dims], attributes.get("bits", 4)
    codes.axis = axis
    if codes.proto.data_type == _BYTES and len(dims) == 2 and axis in (1, -1):
        codes.packed = (dims[0], dims[1] * 8 // max(bits, 1), bits)


def _scales_by_name(code: Constant, constants: Mapping[str, Constant]) -> None:
    """ONNX Runtime's dynamic quantization multiplies by the scale after the product; it keeps the names together."""
    stem = code.name.removesuffix("_quantized")
    if stem != code.name and code.scale is None:
        code.axis = 0 if len(code.proto.dims) > 2 else 1
        code.scale, code.zero = constants.get(f"{stem}_scale"), constants.get(f"{stem}_zero_point")


def _attributes(node: Any) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def names_of(constants: Mapping[str, Constant]) -> Iterator[tuple[str, Constant]]:
    """Each constant with the name that it is shown under: that of its module where the graph says so.

    The two of a recurrent layer are `stem.weight_ih_l0` and `stem.weight_hh_l0`, of further layers `l1` …
    """
    used: set[str] = set()
    times: dict[str, int] = {}
    for constant in constants.values():
        stem = _name(constant)
        first = _numbered(constant, stem, 0)
        count = times.get(first, 0)
        while (name := _numbered(constant, stem, count)) in used:
            count += 1
        used.add(name)
        times[first] = count
        yield name, constant


def _numbered(constant: Constant, stem: str, count: int) -> str:
    if constant.recurrent:
        ending = "bias" if constant.recurrent == "bias" else f"weight_{constant.recurrent}"
        return f"{stem}.{ending}_l{count}"
    ending = f"_{count + 1}" if count else ""
    weight = ".weight" if constant.kind or stem.endswith(".weight") else ""
    return f"{stem.removesuffix('.weight')}{ending}{weight}"


def _name(constant: Constant) -> str:
    name = re.sub(r"(?:_quantized|[._]MatMul)?(?:[._]weight)?_Q\d+(?:G\d+)?$|_quantized$", "", constant.name)
    name = name if constant.scale is not None else constant.name
    made_up = is_made_up(name)
    if (made_up or constant.recurrent) and constant.user and (path := _path(constant.user)):
        return path
    if not made_up and ("/" in name or ":" in name):
        return _path(re.sub(r":\d+$", "", name)) or name
    return name


def is_made_up(name: str) -> bool:
    """Whether an exporter made the name up."""
    return _MADE_UP.fullmatch(name) is not None


def _path(name: str) -> str:
    """`/model/layers.0/q_proj/MatMul` as `model.layers.0.q_proj`."""
    parts = [part for part in re.split(r"[/:]+", name) if part]
    while parts and re.fullmatch(r"(?:node_)?[A-Z][A-Za-z0-9]*(?:_\d+)?(?:_quant)?", parts[-1]) and len(parts) > 1:
        parts.pop()
    return ".".join(parts)
