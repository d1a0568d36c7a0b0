"""Keras: `.keras` archives, `.weights.h5`, and the older `.h5`, transformers' `tf_model.h5` too.

Datasets are read, no layer is built, and no link that leads out of the file is followed. Names and axes become
PyTorch's (`kernels_last`).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.formats.arrays import ArrayStore, Stored, is_bfloat16
from tailwise.checkpoints.formats.kernels_last import Turned, leaf_of, turned
from tailwise.checkpoints.formats.repeated import Laid, beyond_what_is_held
from tailwise.checkpoints.formats.unfolding import FACTOR, MOST_BYTES, check_unfolding
from tailwise.core.archives import DAMAGED_ARCHIVE
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.harmless import listed
from tailwise.core.optional import how_to_get
from tailwise.core.storage import json_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WEIGHTS = "model.weights.h5"
_LARGEST = 8 << 30  # of the weights in an archive, which are unpacked into memory
_MOST_SETTINGS = 1 << 28
_MOST_PACKED = 4096  # how much smaller than an array its compressed bytes can be
_DEEPEST, _MOST, _MOST_LINKS = 64, 1 << 18, 1 << 20
_DAMAGED = "it is damaged or cut off: download or save it again"
#: Groups that hold no weights of the model.
_OPTIMIZER = frozenset({"optimizer", "optimizer_weights", "_optimizer"})
_LISTS = ("layers", "_layer_checkpoint_dependencies")
_SCOPE = re.compile(r"tf_\w+")


class KerasCheckpoint(ArrayStore):
    """The weights of one file of Keras."""

    format = "keras"

    def __init__(
        self,
        uri: str,
        files: Sequence[ByteSource],
        *,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        (file,) = files
        self._file = file
        self._left: list[str] = []
        self._links = 0
        self._addresses: dict[str, Any] = {}  # dataset → where it lies: several links may lead to one
        self._state = False  # whether an optimizer's state was left out
        self._h5, settings = _opened(file)
        try:
            arrays = self._listed(settings)
            super().__init__(uri, file, arrays, config=config, revision=revision)
        except BaseException:
            self._h5.close()
            raise
        first: dict[Any, str] = {}
        for name, stored in self._arrays.items():
            first.setdefault(self._addresses[stored.key], name)
        found = {name: first[self._addresses[stored.key]] for name, stored in self._arrays.items()}
        self.shared = {name: one for name, one in found.items() if one != name}
        if self._state:
            self.notes += ("left out, for it is the state of training and no weights: the optimizer",)
        if self._left:
            self.notes += (f"{len(self._left)} links that lead elsewhere were not followed: {listed(self._left, 5)}",)

    def _listed(self, settings: Any) -> list[Stored]:
        try:
            classes = _classes(settings if settings is not None else _attribute(self._h5, "model_config"))
            old = _is_own(self._h5, "model_weights")
            stored = list(self._arrays_of(self._h5["model_weights"] if old else self._h5, classes))
            self._state = self._state or (old and _is_own(self._h5, "optimizer_weights"))
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, OverflowError) as error:
            # The library raises these where a part of the file is not what another says.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UnreadableError(f"is a damaged HDF5 file: {reason}", where=self._file.name, fix=_DAMAGED) from error
        return stored

    def _arrays_of(self, root: Any, classes: Mapping[str, str]) -> Iterator[Stored]:
        import h5py

        datasets, given = list[tuple[tuple[str, ...], Any]](), dict[tuple[str, ...], str]()
        for path, node in self._walk(root, (), set()):
            if len(datasets) >= _MOST:
                raise UnreadableError(f"names more than {_MOST} arrays", where=self._file.name)
            if path[-1] == "vars":
                given[path[:-1]] = _text(_attribute(node, "name"))
            if hasattr(node, "is_virtual") and node.shape is not None and node.dtype.kind in "fiubcV":
                datasets.append((path, node))
        refused = beyond_what_is_held(
            Laid("/".join(path), h5py.h5o.get_info(one.id).addr, one.nbytes, one.nbytes) for path, one in datasets
        )
        for path, dataset in datasets:
            shape = tuple(int(size) for size in dataset.shape)
            shown = _shown(path, shape, classes, given)
            if why := _not_here(dataset) or _no_numbers(dataset.dtype) or refused.get("/".join(path), ""):
                shown = Turned(shown.name, shape, refused=why)
            key = f"{root.name.rstrip('/')}/{'/'.join(path)}"
            self._addresses[key] = h5py.h5o.get_info(dataset.id).addr
            yield Stored(key, dataset.dtype, shape, shown)

    def _walk(self, group: Any, path: tuple[str, ...], seen: set[Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Every group and dataset under `group` that lies in this file, by hard links only."""
        import h5py

        if len(path) > _DEEPEST:
            raise UnreadableError(f"is nested more than {_DEEPEST} deep", where=self._file.name, fix=_DAMAGED)
        for name in self._names(group):
            inner = (*path, name)
            if not _is_own(group, name):
                self._left.append("/".join(inner))
                continue
            if not path and name in _OPTIMIZER:
                self._state = True
                continue
            member = group[name]
            yield inner, member
            if isinstance(member, h5py.Group):
                address = h5py.h5o.get_info(member.id).addr
                if address not in seen:
                    seen.add(address)
                    yield from self._walk(member, inner, seen)

    def _names(self, group: Any) -> list[str]:
        """The links of a group, as h5py orders them; a tree whose nodes repeat stands for links without number."""
        import h5py

        found: list[str] = []

        def take(name: bytes) -> bool | None:
            found.append(name.decode("utf-8", "surrogateescape"))
            return True if self._links + len(found) > _MOST_LINKS else None  # which ends it

        by_age = group.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_TRACKED
        group.id.links.iterate(take, idx_type=h5py.h5.INDEX_CRT_ORDER if by_age else h5py.h5.INDEX_NAME)
        self._links += len(found)
        if self._links > _MOST_LINKS:
            raise UnreadableError(
                f"names more than {_MOST_LINKS} groups and arrays", where=self._file.name, fix=_DAMAGED
            )
        return found

    def _array(self, stored: Stored, start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        try:
            dataset = self._h5[stored.key]
            values: NDArray[Any] = np.asarray(dataset[start:stop] if stored.shape else dataset[()])
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, MemoryError) as error:
            place = f"{self._file.name}, array {stored.key[:120]}"
            raise UnreadableError(f"could not be read: {error}", where=place, fix=_DAMAGED) from error
        return values

    @override
    def close(self) -> None:
        super().close()
        self._h5.close()


def _opened(file: ByteSource) -> tuple[Any, Any]:
    """The HDF5 file, and the settings of the model where they lie beside it in an archive."""
    try:
        import h5py
    except ImportError as error:
        raise UsageError(
            "reading Keras files needs the h5py package", where=file.name, fix=how_to_get("keras")
        ) from error
    try:
        if not file.head.startswith(b"PK"):
            return h5py.File(file.local_path(), "r"), None
        with zipfile.ZipFile(file.local_path()) as archive:
            info = archive.getinfo(_WEIGHTS)
            if info.file_size > _LARGEST:
                raise UnreadableError(
                    f"its weights are {info.file_size} bytes, and are unpacked into memory",
                    where=file.name,
                    fix=f"unpack it (unzip) and give {_WEIGHTS}",
                )
            check_unfolding([info], file.name)
            image = archive.read(_WEIGHTS)
            settings = "config.json"
            read = settings in archive.namelist() and archive.getinfo(settings).file_size <= _MOST_SETTINGS
            text = archive.read(settings) if read else b"{}"
        return h5py.File(h5py.h5f.open_file_image(image)), text
    except DAMAGED_ARCHIVE as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        reason = f"there is no {_WEIGHTS} in it" if isinstance(error, KeyError) else said
        raise UnreadableError(f"is not a whole Keras file (HDF5): {reason}", where=file.name, fix=_DAMAGED) from error


def _is_own(group: Any, name: str) -> bool:
    """Whether `name` is in `group` itself, and no link to elsewhere."""
    import h5py

    # `in group` follows paths and links; of `list(group)`, a file of many groups would take the square of their number.
    return "/" not in name and name != "." and isinstance(group.get(name, None, getlink=True), h5py.HardLink)


def _not_here(dataset: Any) -> str:
    """Why the values of a dataset are not in this file, or nothing."""
    if dataset.is_virtual or dataset.external:
        return "its values lie in other files, which are not followed"
    held = dataset.id.get_storage_size()
    if dataset.nbytes > _MOST_PACKED * held or dataset.nbytes > max(MOST_BYTES, FACTOR * held):
        return f"it claims {dataset.nbytes} bytes, and the file holds {held} of them"
    return ""


def _no_numbers(dtype: Any) -> str:
    return "" if dtype.kind in "fiubc" or is_bfloat16(dtype) else f"entries of the type {dtype} are no numbers"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _attribute(group: Any, name: str) -> Any:
    try:
        return group.attrs.get(name)
    except (OSError, TypeError, ValueError, RuntimeError):
        return None


def _classes(settings: Any) -> dict[str, str]:
    """Layer → its class, from the model's settings: names are looked for, nothing is built."""
    try:
        tree = json_of(settings) if settings is not None else {}
    except (ValueError, RecursionError, TypeError):
        return {}
    classes: dict[str, str] = {}
    todo = [tree]
    while todo and len(classes) < _MOST:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            todo += item.values()
            config = item.get("config")
            if (
                isinstance(item.get("class_name"), str)
                and isinstance(config, dict)
                and isinstance(config.get("name"), str)
            ):
                classes[config["name"]] = item["class_name"]
    return classes


def _shown(
    path: tuple[str, ...], shape: tuple[int, ...], classes: Mapping[str, str], given: Mapping[tuple[str, ...], str]
) -> Turned:
    if len(path) > 1 and path[-2] == "vars" and path[-1].isdecimal():
        return _numbered(path, shape, classes, given)
    parts = [part for part in path if part]
    leaf = re.sub(r":\d+$", "", parts.pop())
    if len(parts) > 1 and _SCOPE.fullmatch(parts[1]):  # transformers: layer / class / the layer's own names
        parts = parts[2:]
    elif parts and parts[0] in parts[1:]:  # the layer's group, then its variable's path, from the model's name on
        parts = parts[parts.index(parts[0], 1) :]
    class_name = classes.get(parts[-1], "") if parts else ""
    if not class_name and len(parts) > 1 and "cell" in parts[-1]:
        class_name = classes.get(parts[-2], "")
    parts = [part.rpartition("___")[2].replace("_._", ".") for part in parts]
    return turned([*parts, leaf], shape, class_name)


def _numbered(
    path: tuple[str, ...], shape: tuple[int, ...], classes: Mapping[str, str], given: Mapping[tuple[str, ...], str]
) -> Turned:
    """A variable of Keras 3, `layers/conv2d/vars/0`: the group is named by class, its attribute by the layer's name."""
    groups, names, class_name = path[:-2], list[str](), ""
    for depth, group in enumerate(groups):
        if group in _LISTS and depth + 1 < len(groups):
            continue
        name = given.get(groups[: depth + 1], "")
        listed = depth > 0 and groups[depth - 1] in _LISTS
        names.append(name if listed and name else group)
        own = classes.get(name, "") or f"{group}/{name}"
        class_name = f"{class_name}/{own}" if group == "cell" else own
    return turned([*names, leaf_of(int(path[-1]), class_name)], shape, class_name)
