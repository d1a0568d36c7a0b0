"""What a pickle would become, worked out from its opcodes before anything of it is made.

A few hundred bytes can name a structure that no memory holds and no walk ends: each list holds the one before twice, a
tuple of such tuples is hashed, a call allocates what a number says. So the opcodes are gone through with a stack of
sizes instead of values: how many objects each would be if nothing were shared, and how deep. What real checkpoints
hold is far below every bound here.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from tailwise.checkpoints.formats.unfolding import MOST_BYTES, check_one_directory, check_unfolding
from tailwise.core.archives import DAMAGED_ARCHIVE
from tailwise.core.errors import UnreadableError

#: Of the pickle in a zip archive, unfolded: a hundred thousand tensors take some twenty megabytes.
_MOST_BYTES = MOST_BYTES
#: What a pickle makes, in units of some 32 bytes: a gigabyte. A tensor takes about sixty.
_MOST_MADE = 1 << 25
#: Objects that a structure unfolds to where shared parts are counted each time, as a walk meets them.
_MOST_OBJECTS = 1 << 25
_DEEPEST = 256
#: The old format is five pickles and the data: magic number, version, system, object, keys.
_OLD_PICKLES = 5
#: Bytes that a text may claim beyond the end of its file: of a file that is cut off, the reader says more.
_MOST_CLAIMED = 1 << 24
#: Codecs that bytes were written by; others take quadratic time, or are no codecs of text.
_ENCODINGS = frozenset({"latin1", "latin-1", "iso-8859-1", "utf-8", "utf8", "ascii"})
_AGAIN = "no checkpoint that torch.save writes looks like this: do not trust the file"

_CONSTANTS = frozenset(
    {"NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "FLOAT", "BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES",
     "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE"}
)  # fmt: skip
#: What costs more than one unit: empty containers, the stack that a mark puts aside, an entry of the memo.
_COSTS = {"EMPTY_LIST": 2, "EMPTY_DICT": 2, "EMPTY_SET": 7, "MARK": 3, "BINPUT": 3, "LONG_BINPUT": 4, "PUT": 4}
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"})
_TEXTS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8", "SHORT_BINSTRING"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "PUT"})
_GETS = frozenset({"BINGET", "LONG_BINGET", "GET"})


class _Thing:
    """A value that the pickle would make: how many objects, how deep, and what calls need to know of it."""

    __slots__ = ("depth", "items", "kind", "size")

    def __init__(self, kind: str = "", size: int = 1, depth: int = 0, items: tuple[_Thing, ...] = ()) -> None:
        self.kind, self.size, self.depth, self.items = kind, size, depth, items


_ONE, _NUMBER = _Thing(), _Thing("a number")


def check_file(path: Path, where: str, *, is_zip: bool) -> None:
    """`UnreadableError` unless the pickles of a file of `torch.save` stay within bounds."""
    with path.open("rb") as file:
        check_stream(file, where, is_zip=is_zip)


def check_stream(file: IO[bytes], where: str, *, is_zip: bool) -> None:
    """As `check_file`, of an open file."""
    try:
        if is_zip:
            _check_archive(file, where)
        else:
            size = file.seek(0, 2)
            file.seek(0)
            for _ in range(_OLD_PICKLES):
                _Bounds(where).go_through(_Within(file, size, where))
    except (ValueError, EOFError, IndexError, KeyError, OverflowError):
        return  # a damaged pickle ends there for whoever reads it, too, and torch says of what kind
    except DAMAGED_ARCHIVE as error:
        raise UnreadableError(
            f"is no zip archive that can be read: {str(error)[:200]}", where=where,
            fix="it is damaged or cut off: download or save it again",
        ) from error  # fmt: skip


def check_amount(data: bytes, where: str) -> None:
    """`UnreadableError` where a pickle of any protocol makes more objects than a gigabyte holds."""
    made = 0
    try:
        for op, _, _ in pickletools.genops(data):
            made += _COSTS.get(op.name, 1)
            if made > _MOST_MADE:
                _refuse("its pickle makes more objects than a gigabyte holds", where)
    except (ValueError, EOFError, IndexError, OverflowError):
        return  # it is damaged, and whoever reads it says so


def stored_as_is(path: Path) -> bool:
    """Whether every tensor in a zip archive lies there uncompressed, so that it can be mapped."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())
    except DAMAGED_ARCHIVE:
        return True  # whoever opens it says what is wrong


def _check_archive(file: IO[bytes], where: str) -> None:
    check_one_directory(file, where)
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        names = [part.filename.lower() for part in parts]  # torch finds them whatever their case
        if len(set(names)) != len(names):
            _refuse("holds two parts of one name", where)
        check_unfolding(parts, where)
        for part, name in zip(parts, names, strict=True):
            if not name.endswith(".pkl"):
                continue
            if part.file_size > _MOST_BYTES:
                _refuse(f"its {part.filename[:100]} has {part.file_size} bytes, and tensors are not kept there", where)
            with archive.open(part) as opened:
                _Bounds(where).go_through(_Within(opened, part.file_size))
    data = _as_torch_finds_it(file)
    if data is not None:
        _Bounds(where).go_through(_Within(io.BytesIO(data), len(data)))


def _as_torch_finds_it(file: IO[bytes]) -> bytes | None:
    """The pickle of an archive by torch's own reader of archives, which is what will load it; None without one."""
    import torch

    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    found: bytes | None = reader.get_record("data.pkl") if "data.pkl" in reader.get_all_records() else None
    return found


class _Within:
    """A file that gives no more than it has: to ask for the length that a text claims takes room for as much.

    Where `where` is given, such a claim is refused: whoever reads the file next would ask for all of it.
    """

    def __init__(self, file: IO[bytes], size: int, where: str | None = None) -> None:
        self._file, self._size, self._where = file, size, where
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        left = max(0, self._size - self._file.tell())
        if count > left + _MOST_CLAIMED and self._where is not None:
            raise UnreadableError(
                f"is not a whole PyTorch file: a text in it claims {count} bytes where {left} are left",
                where=self._where,
                fix="it is damaged or cut off: download or save it again",
            )
        return self._file.read(max(0, min(count, left)))


class _Bounds:
    """One pickle, gone through opcode by opcode."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._stack: list[_Thing] = []
        self._marks: list[list[_Thing]] = []
        self._memo: dict[int, _Thing] = {}

    def go_through(self, file: _Within) -> None:
        """To the end of the pickle. Raises what `pickletools` does for one that is damaged."""
        made = 0
        for op, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]  # it reads, and asks where it is
            made += _COSTS.get(op.name, 1)
            if made > _MOST_MADE:
                _refuse("its pickle makes more objects than a gigabyte holds", self._where)
            self._step(op.name, argument)

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUTS:
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name in _TEXTS:
            stack.append(_Thing(f"text {argument!s:.32}") if len(argument) < 32 else _ONE)
        elif name in _NUMBERS:
            stack.append(_NUMBER)
        elif name in _CONSTANTS:
            stack.append(_Thing())
        elif name == "GLOBAL":
            stack.append(_Thing(f"global {argument.replace(' ', '.')}"))
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
        else:
            self._combine(name)

    def _combine(self, name: str) -> None:
        if name in _TUPLES:
            self._tuple(self._popped(_TUPLES[name]))
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            self._tuple(self._since_mark())
        elif name in ("APPEND", "SETITEM", "BUILD"):
            self._grow(self._popped(2 if name == "SETITEM" else 1))
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            self._grow(self._since_mark())
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = self._popped(2)
            self._check_call(called.kind, arguments)
            self._tuple([called, arguments])
        elif name == "BINPERSID":
            self._tuple(self._popped(1))
        elif name == "POP":
            self._popped(1)
        elif name == "POP_MARK":
            self._since_mark()
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(name)  # torch takes no others either, and says so

    def _popped(self, count: int) -> list[_Thing]:
        taken = self._stack[-count:]
        if len(taken) < count:
            raise IndexError("the stack is empty")
        del self._stack[-count:]
        return taken

    def _since_mark(self) -> list[_Thing]:
        taken, self._stack = self._stack, self._marks.pop()
        return taken

    def _tuple(self, items: list[_Thing]) -> None:
        made = _Thing("", 1, 0, tuple(items[:8]))
        self._stack.append(made)
        self._grow(items)

    def _grow(self, items: Iterable[_Thing]) -> None:
        target = self._stack[-1]
        for item in items:
            target.size += item.size
            target.depth = max(target.depth, item.depth + 1)
        if target.size > _MOST_OBJECTS:
            _refuse(f"its pickle unfolds to more than {_MOST_OBJECTS} objects", self._where)
        if target.depth > _DEEPEST:
            _refuse(f"its pickle is nested more than {_DEEPEST} deep", self._where)

    def _check_call(self, called: str, arguments: _Thing) -> None:
        name, given = called.removeprefix("global "), [item.kind for item in arguments.items]
        if name == "torch._tensor._rebuild_from_type_v2" and given:  # it calls what it is given
            self._check_call(given[0], arguments.items[2] if len(given) > 2 else _ONE)
        elif name.endswith(".bytearray") or (name.startswith("torch.") and name.endswith(("Tensor", "Storage"))):
            if any(kind == "a number" for kind in given):
                _refuse(f"it asks {name} for memory by a number", self._where)
        elif name == "_codecs.encode" and len(given) > 1 and given[1].removeprefix("text ") not in _ENCODINGS:
            _refuse("it encodes text by an unusual codec", self._where)


def check_extent(saved: Any, where: str, is_leaf: Callable[[Any], bool]) -> None:
    """`UnreadableError` where walking through what was loaded would not end: it is too deep, in a circle, or unfolds.

    Containers are looked at once each, however often they are shared.
    """
    sizes: dict[int, int] = {}
    open_: set[int] = set()
    todo: list[tuple[Any, bool]] = [(saved, False)]
    while todo:
        value, done = todo.pop()
        children = _children(value, is_leaf)
        key = id(value)
        if children is None or (not done and key in sizes):
            continue
        if done:
            open_.discard(key)
            sizes[key] = 1 + sum(sizes.get(id(child), 1) for child in children)
            if sizes[key] > _MOST_OBJECTS:
                _refuse(f"unfolds to more than {_MOST_OBJECTS} objects", where)
            continue
        open_.add(key)
        if len(open_) > _DEEPEST:
            _refuse(f"is nested more than {_DEEPEST} deep", where)
        todo.append((value, True))
        for child in children:
            if id(child) in open_:
                _refuse("holds itself", where)
            todo.append((child, False))


def _children(value: Any, is_leaf: Callable[[Any], bool]) -> Iterable[Any] | None:
    if is_leaf(value):
        return None
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else None


def _refuse(what: str, where: str) -> NoReturn:
    raise UnreadableError(what, where=where, fix=_AGAIN)
