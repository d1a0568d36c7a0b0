"""A pickle as inert records: whatever class it names, nothing of it is imported and nothing is called."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from tailwise.checkpoints.formats.pickle_bounds import check_amount
from tailwise.core.errors import UnreadableError

_LARGEST = 1 << 27


class Record:
    """What a pickled object was made with: `args` of its maker, its `state`, and the attributes that this gives."""

    path = ""  # module and name of its class; a bare class stands for whatever the pickle named so

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.state = args, None
        self.__dict__.update(kwargs)

    def __setstate__(self, state: Any) -> None:
        self.state = state
        if isinstance(state, tuple) and len(state) == 2:  # (__dict__, slots)
            for part in state:
                self.__setstate__(part)
        elif isinstance(state, Mapping):
            self.__dict__.update({str(key): value for key, value in state.items()})


class _Sizes(tuple[Any, ...]):
    __slots__ = ()


def _is_plain_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(not isinstance(item, tuple) and _is_plain_key(item) for item in key)
    return key is None or isinstance(key, str | int | bytes | Record)


class _Inert(pickle._Unpickler):
    """The unpickler in Python, whose memo is a dict: that in C makes room for any index that a file names."""

    def __init__(self, file: io.BytesIO, *, with_storages: bool) -> None:
        super().__init__(file)
        self._with_storages = with_storages
        self._classes: dict[str, Any] = {
            "torch.Size": _Sizes,
            "builtins.set": frozenset,
            "collections.OrderedDict": dict,
        }

    # Hashing a tuple of shared tuples need not end, so what becomes a key is looked at first.
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def _with_keys(self, code: bytes, step: int) -> None:
        keys = self.stack[::step] if step else [self.stack[-2]]
        if not all(map(_is_plain_key, keys)):
            raise pickle.UnpicklingError("it has keys that are no names")
        load: Any = pickle._Unpickler.dispatch[code[0]]
        load(self)

    def persistent_load(self, pid: Any) -> Any:
        if not self._with_storages or not isinstance(pid, tuple) or len(pid) < 5:
            raise pickle.UnpicklingError("it names what lies outside of it")
        return self.find_class("torch", "storage")(*pid)

    def find_class(self, module: str, name: str, /) -> Any:
        path = f"{module}.{name}"
        if path not in self._classes:
            self._classes[path] = type("Record", (Record,), {"path": path})
        return self._classes[path]


def _looking(code: bytes, step: int) -> Callable[[_Inert], None]:
    return lambda reader: reader._with_keys(code, step)


#: Opcodes that make keys, and where these are: every one, every second, or (0) below the top.
_KEYED = {pickle.SETITEM: 0, pickle.SETITEMS: 2, pickle.DICT: 2, pickle.ADDITEMS: 1, pickle.FROZENSET: 1}
for _code, _step in _KEYED.items():
    _Inert.dispatch[_code[0]] = _looking(_code, _step)


def read_inert(data: bytes, *, where: str, with_storages: bool = False) -> Any:
    """The object that `data` pickles, every object of a class of its own being a `Record`.

    `with_storages`: what it names of PyTorch's storages, which lie in other parts of an archive, is a `Record` too.
    """
    if len(data) > _LARGEST:
        raise UnreadableError(f"is {len(data)} bytes, too large for metadata", where=where)
    check_amount(data, where)
    try:
        return _Inert(io.BytesIO(data), with_storages=with_storages).load()
    except Exception as error:  # a damaged pickle raises anything
        raise UnreadableError(
            f"is not a whole pickle ({type(error).__name__})",
            where=where,
            fix="it is damaged or cut off: copy or save it again",
        ) from error
