"""Which format a file has, by its first bytes: suffixes lie."""

from __future__ import annotations

from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.header import MAX_HEADER
from tailwise.errors import UnreadableError

#: First bytes of files that are known and cannot be read, and what to say.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "is a git-lfs pointer, not the weights themselves",
        "run `git lfs pull` in its repository, or download the file itself",
    ),
    (b"\x89HDF", "is an HDF5 file (Keras), which tailwise cannot read", "save its weights as safetensors"),
    (b"<!DOCTYPE", "is a web page, not weights", "the link leads to a page: use the download link"),
    (b"<html", "is a web page, not weights", "the link leads to a page: use the download link"),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it first"),
    (b"\x93NUMPY", "is a .npy array", "load it with numpy and pass the array"),
    (b"ustar", "is a tar archive", "unpack it first"),
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".keras", ".h5", ".npz", ".npy")
READABLE = (
    "tailwise reads safetensors, PyTorch (.pt, .pth, .bin, .ckpt), GGUF, ONNX, Keras (.keras, .h5) and NumPy files"
)


def sniff(source: ByteSource) -> str:
    """`safetensors`, `torch`, `gguf` or `onnx`; `UnreadableError` for everything else, named where known."""
    if source.size == 0:
        raise UnreadableError("is an empty file", where=source.name, fix="download or save it again")
    head = source.head
    # First: the length it begins with can look like any other format's first bytes.
    if _is_safetensors(head):
        return "safetensors"
    for magic, what, fix in _OTHERS:
        if head.lower().startswith(magic.lower()):
            raise UnreadableError(what, where=source.name, fix=fix)
    if head.startswith(b"GGUF"):
        return "gguf"
    if _is_onnx(head, source.name):
        return "onnx"
    if source.name.endswith((".npz", ".keras", ".zip")):
        raise UnreadableError("is an archive of another kind", where=source.name, fix=READABLE)
    if head.startswith(b"PK\x03\x04") or _is_pickle(head):
        return "torch"
    if source.name.endswith(".safetensors"):
        return "safetensors"
    raise UnreadableError(
        f"is no weights file that tailwise knows (it starts with {head[:8]!r})",
        where=source.name,
        fix=f"{READABLE}; if it is one of these, it is damaged: download it again",
    )


def _is_pickle(head: bytes) -> bool:
    # Protocols 2 to 5 begin with PROTO; torch has never written 0 and 1.
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def _is_onnx(head: bytes, name: str) -> bool:
    # A protobuf message whose first field is ir_version; SavedModels begin with version 1, which no exporter writes.
    started = head[:1] == b"\x08" and len(head) > 2 and 3 <= head[1] < 0x40 and head[2] & 7 in (0, 2)
    return started or name.endswith(".onnx")


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER
