"""How pictures are made ready is said by a file that may say anything."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.evaluation import images
from tailwise.models.evaluation.images import images_of
from tailwise.models.evaluation.own_processor import check_processor
from tailwise.models.evaluation.preparation import Preparation, preparation_of
from tailwise.models.evaluation.quiet import quiet

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize(
    "said",
    [
        {"size": {"height": 10**6, "width": 10**6}},
        {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 20_000, "width": 32}},
        {"size": {"height": -5, "width": 0}},
        {"size": {"shortest_edge": 1e400}},
        {"size": "large"},
        {"size": {}},
        {"size": [32, 32]},
        {"image_mean": ["a"]},
        {"image_std": None},
        {"resample": 10**9},
        {"rescale_factor": {}},
        [1],
    ],
)
def test_what_cannot_be_is_one_error(tmp_path, said):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UnreadableError, match="pictures"):
        preparation_of(str(tmp_path), SimpleNamespace(image_size=32, num_channels=3))


@pytest.mark.parametrize("config", [{"num_channels": 10**9}, {"image_size": 10**9}, {"image_size": []}])
def test_of_a_config_too(tmp_path, config):
    with pytest.raises(UnreadableError, match="pictures"):
        preparation_of(str(tmp_path), SimpleNamespace(**config))


def test_a_picture_of_one_line_is_not_made_a_bomb():
    with pytest.raises(UnreadableError, match="too many pixels"):
        Preparation(224, 224, 3, shortest=224)(Image.new("RGB", (60_000, 1)))


def test_more_pictures_than_memory_holds_are_said_before_one_is_read(tmp_path, monkeypatch):
    for number in range(4):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
    config = SimpleNamespace(image_size=8, num_channels=3)
    assert len(images_of(str(tmp_path), str(tmp_path), config)) == 4
    monkeypatch.setattr(images, "free_memory", lambda: 1000)
    with pytest.raises(UsageError, match="memory"):
        images_of(str(tmp_path), str(tmp_path), config)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("CLIPImageProcessor", {"size": {"height": 10**6, "width": 10**6}}),
        ("CLIPImageProcessor", {"do_center_crop": True, "crop_size": {"height": 20_000, "width": 32}}),
        ("LlavaNextImageProcessor", {"image_grid_pinpoints": [[336, 336_000]]}),
        ("Qwen2VLImageProcessor", {"min_pixels": 10**10, "max_pixels": 10**11}),
        ("Qwen2VLImageProcessor", {"temporal_patch_size": 10**6}),
        ("Qwen2VLImageProcessor", {"size": {"shortest_edge": 1 << 28, "longest_edge": 1 << 28}}),
        ("LlavaNextImageProcessor", {"image_grid_pinpoints": [[4096, 4096]], "crop_size": {"height": 1, "width": 1}}),
        ("GotOcr2ImageProcessor", {"max_patches": 4096, "size": {"height": 2048, "width": 2048}}),
        ("Pix2StructImageProcessor", {"max_patches": 4096, "patch_size": {"height": 4096, "width": 4096}}),
    ],
)
def test_what_a_processor_would_make_too_large_is_refused(kind, said):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, kind)
    check_processor(processor(), [(64, 48)], "m")
    with pytest.raises(UnreadableError, match=r"preprocessor (asks for|cuts a picture)"):
        check_processor(processor(**said), [(64, 48)], "m")


def test_every_processor_of_transformers_may_do_what_it_does():
    transformers = pytest.importorskip("transformers")
    names = [name for name in dir(transformers) if name.endswith("ImageProcessorPil")]
    assert len(names) > 20
    for name in names:
        try:
            ready = getattr(transformers, name)()
        except (ImportError, TypeError, ValueError, AttributeError):  # some want a library or an argument
            continue
        check_processor(ready, [(640, 480)], name)


def test_a_line_is_no_picture_for_a_processor():
    transformers = pytest.importorskip("transformers")
    with pytest.raises(UnreadableError, match="too many pixels"):
        check_processor(transformers.CLIPImageProcessor(), [(60_000, 1)], "m")


def test_links_out_of_a_folder_of_pictures_are_not_followed(tmp_path):
    place, other = tmp_path / "given", tmp_path / "private"
    for folder in (place / "0", place / "1", other):
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    (place / "0" / "b.png").symlink_to(other / "a.png")
    (place / "0" / "c.png").symlink_to("a.png")
    config = SimpleNamespace(image_size=8, num_channels=3, num_labels=2)
    assert images_of(str(place), str(place), config).labels.tolist() == [0, 0, 1]
    assert len(images.pictures_of(str(place), most=9)[0]) == 3


def test_arrays_of_pictures_do_not_unfold_without_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("tailwise.checkpoints.formats.unfolding.MOST_BYTES", 1 << 16)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1000, 32, 32), np.uint8), labels=np.zeros(1000, int))
    with pytest.raises(UnreadableError, match="would unfold"):
        images_of(str(tmp_path / "a.npz"), str(tmp_path), SimpleNamespace(image_size=8, num_channels=3, num_labels=2))


def test_pictures_are_opened_one_at_a_time(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(tmp_path / f"{name}.png")
    opened = []
    found = images._opened
    monkeypatch.setattr(images, "_opened", lambda path: opened.append(path.name) or found(path))
    pictures, _ = images.pictures_of(str(tmp_path), most=9)
    assert list(pictures.sizes) == [(6, 8)] * 3
    assert not opened
    assert [picture.size for picture in pictures] == [(6, 8)] * 3
    assert opened == ["a.png", "b.png", "c.png"]
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableError, match="could not be read as an image"):
        list(pictures.sizes)


def rows_of_pictures(place, rows):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    with quiet():
        made = datasets.Dataset.from_dict({"image": rows, "label": [0] * len(rows)}, features=kinds)
    place.mkdir()
    pq.write_table(made.data.table, place / "test.parquet")  # what is named is not opened, as `to_parquet` would


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """A config of two classes; what `datasets` keeps of a test is kept apart."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return SimpleNamespace(label2id={"cat": 0, "dog": 1}, num_labels=2, image_size=8, num_channels=3)


def test_a_table_names_no_picture_elsewhere(tmp_path, hub, labels):
    for folder in ("other", "own"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    named = [
        f"{hub.server.url}/a.png",
        str(tmp_path / "other" / "a.png"),
        "a.png",
        f"zip://a.png::{hub.server.url}/a.zip",
    ]
    for number, path in enumerate(named):
        place = tmp_path / f"given{number}"
        rows_of_pictures(place, [{"bytes": None, "path": path}])
        with pytest.raises(UnreadableError, match="a picture elsewhere"):
            images_of(f"{place}:test", str(tmp_path), labels)
    assert not hub.server.seen


def test_nor_does_the_card_beside_it(tmp_path, hub, labels):
    rows_of_pictures(tmp_path / "given", [])
    card = "---\n---x: 1\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: {}/a.png\n---\n"
    (tmp_path / "given" / "README.md").write_text(card.format(hub.server.url))
    with pytest.raises(UnreadableError, match="outside"):
        images_of(f"{tmp_path / 'given'}:test", str(tmp_path), labels)
    assert not hub.server.seen


def test_pictures_of_a_data_set_on_this_machine_are_read(tmp_path, labels):
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
        rows_of_pictures(tmp_path / "rows", [{"bytes": file.getvalue(), "path": "x.png"}] * 2)
    assert images_of(f"{tmp_path / 'rows'}:test", str(tmp_path), labels).labels.tolist() == [1, 1]
    for split, name in [("test", "cat"), ("test", "dog"), ("train", "dog")]:
        (tmp_path / "[a] set*" / split / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "[a] set*" / split / name / "a.png")
    assert images_of(f"{tmp_path / '[a] set*'}:test", str(tmp_path), labels).labels.tolist() == [0, 1]
    (tmp_path / "named").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "named" / "a.png")
    (tmp_path / "named" / "metadata.jsonl").write_text('{"file_name": "a.png", "label": 1}\n')
    assert images_of(f"{tmp_path / 'named'}:train", str(tmp_path), labels).labels.tolist() == [1]
    with pytest.raises(UsageError, match="no split 'dev'"):
        images_of(f"{tmp_path / 'rows'}:dev", str(tmp_path), labels)


def test_what_says_how_pictures_are_made_ready_is_no_link_to_elsewhere(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "private").write_text('{"size": {"shortest_edge": 32}}')
    (tmp_path / "model" / "preprocessor_config.json").symlink_to(tmp_path / "private")
    with pytest.raises(UnreadableError, match="outside the model's folder"):
        preparation_of(str(tmp_path / "model"), SimpleNamespace(image_size=32, num_channels=3))
