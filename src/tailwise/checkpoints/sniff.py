"""Which format a file has, by its first bytes: suffixes lie."""

from __future__ import annotations

from tailwise.checkpoints import foreign
from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.header import MAX_HEADER
from tailwise.core.errors import UnreadableError

_MAGIC = {b"GGUF": "gguf", b"\x89HDF\r\n\x1a\n": "keras", b"\x93NUMPY": "numpy"}
_EXPORTED = (b"/data/weights/", b"/models/", b"/archive_format", b"serialized_exported_program.json")
_MARKED = 256  # bytes in which a file of tailwise's says what it is
_TAR = 257  # where a tar archive says that it is one
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".keras", ".h5", ".npz", ".npy")
READABLE = (
    "tailwise reads safetensors, PyTorch (.pt, .pth, .bin, .ckpt), GGUF, ONNX, Keras (.keras, .h5) and NumPy files"
)


def sniff(source: ByteSource) -> str:
    """The format's name, a key of the readers; `UnreadableError` for what none reads, named where known."""
    if source.size == 0:
        raise UnreadableError("is an empty file", where=source.name, fix="download or save it again")
    head = source.head
    # First: the length it begins with can look like any other format's first bytes.
    if _is_safetensors(head):
        return "safetensors"
    _refuse_foreign(source)
    if _is_gpt_sovits(source):
        raise UnreadableError(
            f"is a model of GPT-SoVITS, a PyTorch file whose first two bytes were changed from PK to {head[:2]!r}",
            where=source.name,
            fix="make a copy with the bytes put back: data = open(FILE, 'rb').read(); "
            "open('model.pth', 'wb').write(b'PK' + data[2:])",
        )
    if head.startswith(b"PK"):
        return _archive(source)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    known = _by_content(head, source.name)
    if known is None:
        _refuse_own(source)
        raise UnreadableError(
            f"is no weights file that tailwise knows (it starts with {head[:8]!r})",
            where=source.name,
            fix=f"{READABLE}; if it is one of these, it is damaged: download it again",
        )
    return known


def _refuse_foreign(source: ByteSource) -> None:
    """Say what a file is that no reader here takes, and what to do with it."""
    for offset, magic, what, fix in foreign.MAGIC:
        if source.head[offset : offset + len(magic)].lower() == magic.lower():
            raise UnreadableError(what, where=source.name, fix=fix)
    for endings, what, fix in foreign.SUFFIXES:
        if source.name.endswith(endings):
            raise UnreadableError(what, where=source.name, fix=fix)
    if source.size >= _TAR + 5 and source.head[:2] != b"PK" and source.read(_TAR, 5) == b"ustar":
        what, fix = foreign.archive_of(source.name)
        raise UnreadableError(what, where=source.name, fix=fix)


def _refuse_own(source: ByteSource) -> None:
    """Say which of tailwise's own files this is."""
    start = source.read(0, min(source.size, _MARKED))
    for mark, what, fix in foreign.OWN:
        if mark in start:
            raise UnreadableError(what, where=source.name, fix=fix)


def _is_gpt_sovits(source: ByteSource) -> bool:
    """Whether two digits stand where a zip archive begins, as GPT-SoVITS marks its versions."""
    head = source.head
    if not (head[:2].isdigit() and head[2:4] == b"\x03\x04" and source.size > 30):
        return False
    length = int.from_bytes(head[26:28], "little")
    return 30 + length <= source.size and source.read(30, length).endswith((b"/data.pkl", b"/constants.pkl"))


def _by_content(head: bytes, name: str) -> str | None:
    if _is_onnx(head, name):
        return "onnx"
    if _is_pickle(head):
        return "torch"
    return "safetensors" if name.endswith(".safetensors") else None


def _archive(source: ByteSource) -> str:
    """The kind of a zip archive, by the name of its first member."""
    head, name = source.head, source.name
    length = int.from_bytes(head[26:28], "little") if head[:4] == b"PK\x03\x04" else 0
    first = source.read(30, length) if 30 + length <= source.size else b""
    if name.endswith(".pt2") or any(mark in first for mark in _EXPORTED):
        raise UnreadableError(
            "is a program of torch.export (.pt2)",
            where=name,
            fix="load it where running it can do no harm, and save its weights: "
            "torch.save(torch.export.load(FILE).state_dict, 'model.pt')",
        )
    if first.decode(errors="replace") in foreign.AUDIT_MEMBERS:
        raise UnreadableError(foreign.AUDIT[0], where=name, fix=foreign.AUDIT[1])
    if first.endswith(b".npy") or name.endswith(".npz"):
        return "numpy"
    if first in (b"metadata.json", b"config.json", b"model.weights.h5") or name.endswith(".keras"):
        return "keras"
    if name.endswith(".zip"):
        raise UnreadableError("is a zip archive of another kind", where=name, fix="unpack it, and give what is inside")
    return "torch"


def _is_pickle(head: bytes) -> bool:
    # Protocols 2 to 5 begin with PROTO; torch has never written 0 and 1.
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def _is_onnx(head: bytes, name: str) -> bool:
    # A protobuf message whose first field is ir_version; SavedModels begin with version 1, which no exporter writes.
    started = head[:1] == b"\x08" and len(head) > 2 and 3 <= head[1] < 0x40 and head[2] & 7 in (0, 2)
    return started or name.endswith(".onnx")


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER
