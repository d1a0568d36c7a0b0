"""Images to score and calibrate classifiers with: files in folders, arrays, or a data set, as the model takes them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from tailwise.checkpoints.formats.unfolding import check_unfolding
from tailwise.checkpoints.open import looks_local, names_like
from tailwise.checkpoints.within import stays_within
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.execution.executor import checked_device
from tailwise.core.optional import how_to_get, needed
from tailwise.core.storage import free_memory
from tailwise.models.evaluation.loading import Loaded, address_of
from tailwise.models.evaluation.local_splits import IMAGES, splits_of
from tailwise.models.evaluation.own_code import load_error
from tailwise.models.evaluation.own_config import config_of, room_for
from tailwise.models.evaluation.preparation import Preparation, preparation_of
from tailwise.models.evaluation.quiet import quiet

if TYPE_CHECKING:
    import torch

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
#: What `datasets` makes pictures of, by how files end.
_KINDS = {
    **dict.fromkeys(SUFFIXES, IMAGES), ".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json",
    ".csv": "csv", ".tar": "webdataset", ".zip": IMAGES,
}  # fmt: skip
_BATCH = 64


@dataclass(frozen=True)
class Images:
    """What a classifier takes, and what it should say."""

    pixels: torch.Tensor  # (n, channels, height, width), float32
    labels: torch.Tensor | None  # (n,) int64; None where nobody says
    name: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


def is_classifier(place: str | os.PathLike[str]) -> bool:
    """Whether a folder or Hub id is an image classifier of transformers; False where it cannot be told."""
    try:
        with quiet():
            import transformers

            config = config_of(*address_of(os.fspath(place)))
    except Exception:  # what it is instead is told by whoever reads it
        return False
    named = any("ImageClassification" in str(item) for item in getattr(config, "architectures", None) or ())
    return named and type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def load_classifier(place: str, *, device: str = "cpu") -> Loaded:
    """The classifier in a folder or on the Hub, in float32. Raises `UsageError` and `UnreadableError`."""
    transformers = needed("transformers", "eval", "scoring a model")

    checked_device(device)
    name, revision = address_of(place)
    try:
        with quiet(), room_for(name, revision):
            module, report = transformers.AutoModelForImageClassification.from_pretrained(
                name, config=config_of(name, revision), revision=revision, dtype="float32", output_loading_info=True,
                trust_remote_code=False,
            )  # fmt: skip
    except Exception as error:  # every architecture fails in its own way
        raise load_error(error, place) from error
    if missing := sorted(report.get("missing_keys", ())):
        raise UsageError(
            f"{len(missing)} of its weights are not in the checkpoint and would be random: {', '.join(missing[:3])}",
            where=place,
            fix="give a classifier with its head",
        )
    return Loaded(module.to(device).eval(), None, place, place)


def images_of(source: Any, place: str, config: Any, *, most: int | None = None, seed: int = 0) -> Images:
    """The images that `source` names, as the classifier at `place` takes them.

    A folder with a folder for each class (their names are the model's labels or numbers, or, sorted, its classes), or
    of images alone; a .npz with `images` (n, height, width[, channels], 0 to 255) and `labels`; or a data set as
    `org/name[:split]`, which `datasets` loads, with an image and a label. Several go together. `most` draws so many.
    """
    parts = list(source) if isinstance(source, list | tuple) else [source]
    if not parts:
        raise UsageError("there are no images", fix="name a folder, a .npz, or a data set")
    if any(not isinstance(part, str | os.PathLike) for part in parts):
        raise UsageError("an image classifier takes images, not tokens", where=place, fix="name a folder of images")
    ready = preparation_of(place, config)
    listed = [_listed(os.fspath(part), config) for part in parts]
    pictures = [picture for one, _ in listed for picture in one]
    labels = None if any(own is None for _, own in listed) else [label for _, own in listed for label in own or ()]
    _check_there(pictures, parts)
    chosen = _drawn(len(pictures), most, seed)
    _check_room(len(chosen), ready, place)
    import torch

    pixels = torch.from_numpy(np.stack([ready(_opened(pictures[index])) for index in chosen]))
    classes = None if labels is None else torch.tensor([labels[index] for index in chosen], dtype=torch.int64)
    return Images(pixels, classes, _named(parts))


class Drawn(Sequence[Any]):
    """Pictures as Pillow has them, each opened when it is asked for: a hundred as they are take a machine's memory."""

    def __init__(self, pictures: Sequence[Any], chosen: Sequence[int]) -> None:
        self._pictures, self._chosen = pictures, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: Any) -> Any:
        return _opened(self._pictures[self._chosen[place]])

    @property
    def sizes(self) -> Iterator[tuple[int, int]]:
        """(width, height) of each; files are asked for no more than that."""
        for index in self._chosen:
            yield _size_of(self._pictures[index])


def pictures_of(source: Any, *, most: int, seed: int = 0) -> tuple[Drawn, str]:
    """`most` pictures at random of what `images_of` takes, and what they are called.

    Nobody asks what they show: a folder is taken with all that lies in it.
    """
    parts = [os.fspath(part) for part in (source if isinstance(source, list | tuple) else [source])]
    pictures: list[Any] = []
    for part in parts:
        path = Path(part).expanduser()
        if path.is_dir():
            pictures += _pictures_in(path, path.rglob("*"))
        else:
            pictures += _listed(part, None)[0]
    _check_there(pictures, parts)
    return Drawn(pictures, [int(index) for index in _drawn(len(pictures), most, seed)]), _named(parts)


def _check_room(count: int, ready: Preparation, where: str) -> None:
    need, free = 8 * count * ready.channels * ready.height * ready.width, free_memory()  # twice while they are stacked
    if free is not None and need > free:
        raise UsageError(
            f"{count} pictures of {ready.height} × {ready.width} take about {need / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free",
            where=where,
            fix="give fewer pictures",
        )


def _check_there(pictures: Sequence[Any], parts: Sequence[Any]) -> None:
    if not pictures:
        raise UsageError(
            "there are no images in it", where=os.fspath(parts[0]), fix=f"of {', '.join(sorted(SUFFIXES))}"
        )


def _drawn(count: int, most: int | None, seed: int) -> NDArray[np.int64]:
    if most is None or most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _named(parts: Sequence[Any]) -> str:
    return os.fspath(parts[0]) if len(parts) == 1 else f"{os.fspath(parts[0])} and {len(parts) - 1} more"


def _listed(source: str, config: Any) -> tuple[Sequence[Any], list[int] | None]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(path, config)
    if path.suffix == ".npz":
        return _of_arrays(path, config)
    if path.exists():
        raise UsageError("holds no images", where=source, fix="give a folder of images, a .npz, or a data set")
    return _of_data_set(source, config)


def _of_folder(path: Path, config: Any) -> tuple[Sequence[Any], list[int] | None]:
    inner = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not inner:
        return _pictures_in(path, path.iterdir()), None
    classes = _classes([item.name for item in inner], config, path)
    files = [(file, number) for folder, number in zip(inner, classes, strict=True)
             for file in _pictures_in(path, folder.rglob("*"))]  # fmt: skip
    return [file for file, _ in files], [number for _, number in files]


def _pictures_in(root: Path, files: Iterable[Path]) -> list[Path]:
    """Pictures by their names, sorted; links that lead out of the folder that was given are left out."""
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES and stays_within(root, file))


def _classes(names: Sequence[str], config: Any, where: Path | str) -> list[int]:
    known = {str(name): int(number) for name, number in (getattr(config, "label2id", None) or {}).items()}
    count = int(getattr(config, "num_labels", len(known)))
    if all(name in known for name in names):
        return [known[name] for name in names]
    if all(name.isdecimal() and int(name) < count for name in names):
        return [int(name) for name in names]
    if len(names) == count:
        return list(range(count))  # sorted by name, as torchvision numbers them
    strange = next((name for name in names if name not in known), names[0])
    raise UsageError(
        f"{len(names)} classes, of which {strange!r} is none of the model's {count}",
        where=where,
        fix="name the folders by the model's labels (id2label in config.json) or by their numbers",
    )


def _of_arrays(path: Path, config: Any) -> tuple[Sequence[Any], list[int] | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_unfolding(archive.infolist(), str(path))
        with np.load(path, allow_pickle=False) as stored:
            images = np.asarray(stored["images"])
            labels = np.asarray(stored["labels"]).tolist() if "labels" in stored else None
    except UnreadableError:
        raise
    except Exception as error:  # damaged bytes have many errors
        raise UnreadableError(f"could not be read ({error})", where=path) from error
    if images.ndim not in (3, 4) or (labels is not None and len(labels) != len(images)):
        count = 0 if labels is None else len(labels)
        raise UsageError(f"images of shape {images.shape}, labels of {count}", where=path,
                         fix="give images (n, height, width[, channels]) and as many labels")  # fmt: skip
    classes = int(getattr(config, "num_labels", 0))
    if config is None:
        return list(images.clip(0, 255).astype(np.uint8)), None
    if labels and not 0 <= min(labels) <= max(labels) < classes:
        raise UsageError(f"labels from {min(labels)} to {max(labels)}, and {classes} classes", where=path)
    return list(images.clip(0, 255).astype(np.uint8)), labels


def _of_data_set(source: str, config: Any) -> tuple[Sequence[Any], list[int] | None]:
    name, _, split = source.partition(":")
    if not split and not Path(name).exists() and looks_local(name):
        fix = f"check the path{names_like(Path(name).expanduser())}; a data set of that name is {name}:test"
        raise UnreadableError("no such folder", where=source, fix=fix)
    folder = Path(name).expanduser()
    try:
        with quiet():
            datasets = import_module("datasets")
            data = (
                _of_files(datasets, folder, split or "test", source)
                if folder.is_dir()
                else datasets.load_dataset(name, split=split or "test", trust_remote_code=False)
            )
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError("a data set takes `datasets`", where=source, fix=how_to_get("eval")) from error
    except Exception as error:  # a data set brings its own files and code
        raise load_error(error, source, "no such folder, nor a data set") from error
    kinds = {column: type(kind).__name__ for column, kind in data.features.items()}
    image = next((column for column, kind in kinds.items() if kind == "Image"), None)
    label = next(
        (column for column, kind in kinds.items() if kind == "ClassLabel"), "label" if "label" in kinds else None
    )
    if image is None:
        raise UsageError(f"it has the columns {', '.join(kinds)}, and no image", where=source)
    numbers: list[int] | None = None
    if label is not None and config is not None:
        names = getattr(data.features[label], "names", None)
        places = _classes(names, config, source) if names else list(range(int(getattr(config, "num_labels", 0))))
        numbers = [places[int(value)] for value in data[label]]
    if folder.is_dir():
        return _OwnPictures(data.cast_column(image, datasets.Image(decode=False)), image, folder), numbers
    return _Column(data, image), numbers


def _of_files(datasets: Any, folder: Path, split: str, source: str) -> Any:
    """A split of a data set on this machine, of files that are named one by one: `datasets` is shown no card."""
    found = splits_of(folder.resolve(), _KINDS, source)
    if found.kind is None:
        raise UnreadableError("there is nothing in it that can be read", where=source, fix="give a folder of images")
    if split not in found.parts:
        raise UsageError(f"it has no split {split!r}", where=source, fix=f"name one of {', '.join(found.parts)}")
    files = {name: [_literal(path, source) for path in paths] for name, paths in found.parts.items()}
    return datasets.load_dataset(found.kind, data_files=files, split=split, trust_remote_code=False)


def _literal(path: Path, source: str) -> str:
    """A path as a pattern of `datasets` that means this file alone."""
    text = path.as_posix()
    if "::" in text or "://" in text:
        raise UsageError(f"the name {path.name!r} looks like an address", where=source, fix="rename it")
    return escape(text)


class _Column(Sequence[Any]):
    """The pictures of a data set, decoded one at a time."""

    def __init__(self, data: Any, column: str) -> None:
        self._data, self._column = data, column

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Any:
        return self._data[int(index)][self._column]


class _OwnPictures(_Column):
    """The same of a folder, whose tables may name pictures by path: of those in it alone, one is opened."""

    def __init__(self, data: Any, column: str, folder: Path) -> None:
        super().__init__(data, column)
        self._folder = folder

    @override
    def __getitem__(self, index: Any) -> Any:
        stored = super().__getitem__(index)
        if stored.get("bytes") is None:
            # Within an archive: `zip://a.png::/folder/a.zip`.
            place = str(stored.get("path")).rpartition("::")[2]
            if "://" in place or not Path(place).is_absolute() or not stays_within(self._folder, Path(place)):
                fix = "put all files of the data set into one folder, with relative names"
                raise UnreadableError(f"it names a picture elsewhere: {place[:200]!r}", where=self._folder, fix=fix)
        return import_module("datasets").Image().decode_example(stored)


def _opened(picture: Any) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("images take `pillow`", fix=how_to_get("hf")) from error
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture.squeeze(-1) if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
    if not isinstance(picture, Path):
        return picture
    try:
        with Image.open(picture) as opened:
            opened.load()
            return opened.copy()
    except Exception as error:  # a damaged file has many errors
        raise UnreadableError(f"could not be read as an image ({error})", where=picture) from error


def _size_of(picture: Any) -> tuple[int, int]:
    if not isinstance(picture, Path):
        return _opened(picture).size  # type: ignore[no-any-return]
    from PIL import Image

    try:
        with Image.open(picture) as opened:
            return opened.size
    except Exception as error:  # as above
        raise UnreadableError(f"could not be read as an image ({error})", where=picture) from error


def image_losses(
    model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cross-entropy of every image in nats, (n,), and whether the largest logit is the right class."""
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    losses, right = [], []
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            part, wanted = pixels[start : start + _BATCH], labels[start : start + _BATCH]
            output: Any = model(pixel_values=part.to(device)) if hasattr(model, "config") else model(part.to(device))
            logits = getattr(output, "logits", output).float().cpu()
            losses.append(cross_entropy(logits, wanted, reduction="none").double())
            right.append(logits.argmax(dim=1) == wanted)
    return torch.cat(losses).numpy(), torch.cat(right).numpy()


def predicted(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The class that the model gives each image, (n,)."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        starts = range(0, len(pixels), _BATCH)
        batches = (pixels[start : start + _BATCH].to(device) for start in starts)
        parts = [model(pixel_values=batch).logits.argmax(dim=1).cpu() for batch in batches]
    return torch.cat(parts)
