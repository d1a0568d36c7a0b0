"""Texts and data sets on this machine: nothing outside is read or unfolded without bounds, honest ones are read."""

import bz2
import gzip
import json
import lzma
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.evaluation import table_files
from tailwise.models.evaluation.local_splits import splits_of
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.sources import documents_of
from tailwise.models.evaluation.table_files import KINDS

datasets = pytest.importorskip("datasets")


@pytest.fixture
def private(tmp_path):
    place = tmp_path / "private"
    place.mkdir()
    (place / "notes.txt").write_text("a secret")
    (place / "rows.jsonl").write_text('{"text": "a secret"}\n')
    with quiet():
        datasets.Dataset.from_dict({"text": ["a secret"]}).save_to_disk(place / "saved")
    return place


@pytest.fixture
def place(tmp_path):
    found = tmp_path / "given"
    found.mkdir()
    return found


@pytest.fixture
def small(monkeypatch):
    """Bounds that a test reaches in no time."""
    monkeypatch.setattr(table_files, "MOST_BYTES", 1 << 16)


def refused(source, match):
    with pytest.raises(UnreadableError, match=match):
        documents_of(source)


# Outside


def test_a_link_in_a_folder_of_texts_leads_nowhere_else(place, private):
    (place / "a.txt").write_text("theirs")
    (place / "own.md").symlink_to("a.txt")
    (place / "link.txt").symlink_to(private / "notes.txt")
    found = documents_of(place)
    assert found.texts == ("theirs", "theirs")
    assert "1 links to files outside" in found.notes[0]


def test_files_of_the_hubs_cache_are_links_that_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "123").write_text("a text")
    snapshot = tmp_path / "snapshots" / "456"
    snapshot.mkdir(parents=True)
    (snapshot / "a.txt").symlink_to("../../blobs/123")
    assert documents_of(snapshot).texts == ("a text",)


def saved(place, **state):
    with quiet():
        datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(place)
    file = place / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **state}))
    return place


def test_a_saved_data_set_names_its_own_files(place, private):
    arrow = "data-00000-of-00001.arrow"
    assert documents_of(saved(place)).texts == ("one", "two")
    for name in (f"../private/saved/{arrow}", f"{private}/saved/{arrow}"):
        refused(saved(place, _data_files=[{"filename": name}]), "outside")
    (place / "link.arrow").symlink_to(private / "saved" / arrow)
    refused(saved(place, _data_files=[{"filename": "link.arrow"}]), "outside")


def test_so_do_its_splits(place):
    (place / "dataset_dict.json").write_text(json.dumps({"splits": ["test", "../private/saved"]}))
    saved(place / "test")
    refused(place, "outside")


@pytest.mark.parametrize(
    "card",
    ["data_files: ../private/rows.jsonl", "data_files: ['{}/rows.jsonl']", "data_files: https://example.org/a.jsonl",
     "data_files: 'zip://a.jsonl::b.zip'", "data_files: [{{split: test, path: [../private/*.jsonl]}}]",
     "data_dir: ../private"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_nor_does_what_a_folder_says_of_itself_lead_out(place, private, card, name):
    (place / "a.jsonl").write_text('{"text": "one"}\n')
    said = "configs:\n- config_name: default\n  " + card.format(private)
    (place / name).write_text(f"---\n{said}\n---\n" if name.endswith("md") else said)
    refused(f"{place}:test", "outside")


CARDS = {
    "plain": "---\n{}\n---\n# Words\n",
    "a key of dashes": "---\n---x: 1\n{}\n---\n# Words\n",
    "a text of dashes": "---\nx: |\n  a\n  ---\n{}\n---\n",
    "other ends of lines": "---\r\n{}\r\n---\r\n",
    "a mark before": "\ufeff---\n{}\n---\n",
    "spaces behind": "--- \n{}\n--- \n",
    "lines before": "\n\n---\n{}\n---\n",
    "no end": "---\n{}\n",
    "ends of other kinds": "---\u2028{}\n---\x0b---\n",
    "twice": "---\na: 1\n---\n---\n{}\n---\n",
}
PLACES = ["{url}/a.jsonl", "{url}/*.jsonl", "/**/*.jsonl", "{private}/*.jsonl", "../private/rows.jsonl",
          "hf://datasets/org/name/a.jsonl", "zip://*.jsonl::{url}/a.zip"]  # fmt: skip


@pytest.mark.parametrize("kind", CARDS)
@pytest.mark.parametrize("named", PLACES)
def test_however_a_card_is_written_nothing_elsewhere_is_asked_for(place, private, hub, kind, named):
    (place / "a.jsonl").write_text('{"text": "one"}\n')
    path = named.format(url=hub.server.url, private=private)
    said = f'configs:\n- config_name: default\n  data_files:\n  - split: test\n    path: "{path}"'
    (place / "README.md").write_text(CARDS[kind].format(said), newline="")
    try:
        found = documents_of(f"{place}:train").texts
    except UnreadableError as error:
        assert "outside" in str(error) or "YAML" in str(error)  # noqa: PT017  # either it is read as a card, or it is not
    else:
        assert found == ("one",)
        assert kind != "a key of dashes"
    assert not hub.server.seen


def test_a_card_does_not_name_files_without_bounds(place):
    (place / "a.jsonl").write_text('{"text": "one"}\n')
    card = "---\nconfigs:\n- config_name: default\n  data_files: [{}]\n---\n"
    for many in (["'*a'"] * 5000, ["a.jsonl"] * 200_000, [f"'{'a*' * 5000}'"]):
        (place / "README.md").write_text(card.format(", ".join(many)))
        refused(f"{place}:train", "more files than a data set has")
    (place / "README.md").write_text(card.format("'" + "a*" * 400 + "b.jsonl', a.jsonl"))
    (place / ("a" * 240 + ".jsonl")).write_text("")
    assert documents_of(f"{place}:train").texts == ("one",)


def test_links_of_folders_end(place, private):
    (place / "data").mkdir()
    (place / "data" / "a.jsonl").write_text('{"text": "one"}\n')
    (place / "data" / "round").symlink_to(place)
    (place / "out").symlink_to(private)
    assert documents_of(f"{place}:train").texts == ("one",)


def test_a_link_among_tables_is_not_followed_out(place, private):
    (place / "test.jsonl").symlink_to(private / "rows.jsonl")
    (place / "train.jsonl").write_text('{"text": "one"}\n')
    refused(f"{place}:test", "outside")


def test_what_a_folder_says_of_its_own_files_is_heeded(place):
    (place / "data").mkdir()
    for name in ("a", "b"):
        (place / "data" / f"{name}.csv").write_text(f"text;n\n{name};1\n")
    card = "configs:\n- config_name: default\n  sep: ';'\n  data_files:\n  - {split: dev, path: data/b*.csv}\n"
    (place / "README.md").write_text(f"---\n{card}---\n# Words\n")
    assert documents_of(f"{place}:dev").texts == ("b",)


NAMED = {
    ("train.jsonl", "my-test.jsonl", "b/dev_1.jsonl"): {"train": 1, "validation": 1, "test": 1},
    ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/odd-00000-of-00001.jsonl"):
        {"train": 2, "odd": 1},
    ("train/a.jsonl", "x/eval/b/c.jsonl", "d.jsonl"): {"train": 1, "test": 1},
    ("a.jsonl", "b.jsonl.gz", ".c.jsonl", "__pycache__/d.jsonl", "e.txt", "config.json", "LICENSE"): {"train": 2},
    ("a.csv", "b.parquet"): {"train": 1},
}  # fmt: skip


@pytest.mark.parametrize("names", NAMED, ids=lambda names: names[0])
def test_splits_are_told_by_names_as_datasets_tells_them(place, names):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text('{"text": "one"}\n')
    found = splits_of(place.resolve(), KINDS, "here").parts
    assert {split: len(paths) for split, paths in found.items()} == NAMED[names]
    with quiet():
        theirs = datasets.load_dataset_builder(str(place)).config.data_files
    assert {split: [str(path) for path in paths] for split, paths in found.items()} == dict(theirs)


@pytest.mark.parametrize(
    "said",
    ["data_files: '*.jsonl'", "data_files: [a.jsonl, data/**]", "data_files: {dev: '**/b*', train: [a.jsonl]}",
     "data_files: [{split: dev, path: 'data/**/*.jsonl'}, {split: odd, path: [a.jsonl, '[b-z]*.jsonl']}]",
     "data_dir: data", "data_dir: data\n  data_files: 'in/?.jsonl'", "data_files: ./a.jsonl"],
)  # fmt: skip
def test_and_by_cards(place, said):
    for name in ("a.jsonl", "b.jsonl", "data/b1.jsonl", "data/in/c.jsonl", "data/.h/d.jsonl"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text('{"text": "one"}\n')
    (place / ".huggingface.yaml").write_text(f"configs:\n- config_name: default\n  {said}\n")
    found = splits_of(place.resolve(), KINDS, "here").parts
    assert found
    if not ("{dev" in said or ("data_dir" in said and "data_files" in said)):  # of which datasets takes one from Python
        with quiet():
            theirs = datasets.load_dataset_builder(str(place)).config.data_files
        listed = {split: tuple(Path(path) for path in paths) for split, paths in theirs.items()}
        assert found == listed


def test_of_several_configurations_one_is_the_default(place):
    (place / "a.jsonl").write_text('{"text": "one"}\n')
    (place / "b.jsonl").write_text('{"text": "two"}\n')
    card = "configs:\n- {{config_name: x, data_files: a.jsonl}}\n- {{config_name: {}, data_files: b.jsonl}}\n"
    (place / ".huggingface.yaml").write_text(card.format("default"))
    assert documents_of(f"{place}:train").texts == ("two",)
    (place / ".huggingface.yaml").write_text(card.format("other"))
    with pytest.raises(UsageError, match=r"several configurations \(x, other\)"):
        documents_of(f"{place}:train")


def test_a_folder_without_a_table_is_told(place):
    refused(f"{place}:train", "no table in it")
    (place / "a.xml").write_text("<a/>")
    refused(f"{place}:train", "no table in it")


def test_a_file_that_a_card_names_and_is_not_there_is_told(place):
    (place / "a.jsonl").write_text('{"text": "one"}\n')
    (place / ".huggingface.yaml").write_text("configs:\n- {config_name: x, data_files: b.jsonl}\n")
    refused(f"{place}:train", "not there")


# Without bounds


def test_a_value_that_stands_once_is_not_unfolded_for_every_row(tmp_path, small):
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array(["lorem ipsum " * 1000]))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path, store_schema=False, compression="zstd")
    assert path.stat().st_size < 4000
    refused(path, "would unfold")


def test_nor_is_a_page_that_is_packed(tmp_path, small):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 10**7]}), path, use_dictionary=False, compression="zstd")
    refused(path, "would unfold")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_what_is_packed_by_the_name_of_a_table_is_bounded(tmp_path, small, pack, name):
    text = b"text\n" + b"a" * 10**7 if name.endswith("csv") else b'{"text": "' + b"a" * 10**7 + b'"}'
    (tmp_path / name).write_bytes(pack(text))
    refused(tmp_path / name, "would unfold")


def written(place, batches, schema, **options):
    with (
        pa.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, schema, **options) as to,
    ):
        for batch in batches:
            to.write_batch(batch)


def test_packed_buffers_of_arrow_are_bounded_by_what_they_claim(place, small):
    saved(place)
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    batch = pa.record_batch({"text": [""] * 10**6})
    written(place, [batch], batch.schema, options=packed)
    refused(place, "would unfold")
    batch = pa.record_batch({"text": ["one", "two"]})
    written(place, [batch], batch.schema, options=packed)
    assert documents_of(place).texts == ("one", "two")


def test_a_dictionary_of_arrow_is_bounded(place, small):
    saved(place)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int8()), pa.array(["lorem ipsum " * 10]))
    batch = pa.record_batch({"text": column})
    written(place, [batch], batch.schema)
    refused(place, "would unfold")


def test_offsets_that_cannot_be_are_an_error(place):
    saved(place)
    file = place / "data-00000-of-00001.arrow"
    offsets = [struct.pack("<iii", 0, 3, last) for last in (6, 1 << 30)]
    assert offsets[0] in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(*offsets))
    refused(place, "could not be loaded")


# What could be read


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b'{"text": "one", "n": 1}\n\n{"text": "two"}'),
        ("a.jsonl", b'[{"text": "one"},\n {"text": "two"}]'),
        ("a.jsonl", b'{"text": ["one", "two"], "n": [1, 2]}'),
        ("a.jsonl", b'["one", "two"]'),
        ("a.jsonl", b'{\n"text": ["one",\n"two"]}'),
        ("a.jsonl", gzip.compress(mtime=0, data=b'{"text": "one"}\n{"text": "two"}\n')),
        ("a.csv", "\ufefftext,n\none,1\n\ntwo,2\n".encode()),
        ("a.csv", b'n,text\n1,one\n2,"two"\n'),
    ],
)
def test_tables_are_read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert documents_of(tmp_path / name).texts == ("one", "two")


def test_one_object_is_one_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    assert documents_of(tmp_path / "a.jsonl").texts == ("one",)


def test_long_fields_and_line_ends_in_them_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"' + "word\n" * 50_000 + '"\n')
    assert documents_of(tmp_path / "a.csv").texts == ("word\n" * 50_000,)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_columns_of_every_kind_of_text_are_read(tmp_path, place, kind):
    column = pa.array(["one", "two", "one"], pa.string()).cast(kind) if pa.types.is_dictionary(kind) else pa.array(
        ["one", "two", "one"], kind)  # fmt: skip
    if not pa.types.is_string_view(kind):
        pq.write_table(pa.table({"n": [1, 2, 3], "text": column}), tmp_path / "a.parquet")
        assert documents_of(tmp_path / "a.parquet").texts == ("one", "two", "one")
    saved(place)
    batch = pa.RecordBatch.from_arrays([column], ["text"])
    written(place, [batch], batch.schema)
    assert documents_of(place).texts == ("one", "two", "one")


def test_many_row_groups_with_other_dictionaries_are_read(tmp_path):
    rows = [f"row {n}" for n in range(2000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=300)
    assert documents_of(tmp_path / "a.parquet").texts == tuple(rows)


@pytest.mark.parametrize("rows", [{"text": [1, 2]}, {"text": ["one", None]}, {"text": [["a"], ["b"]]}])
def test_what_is_no_text_is_told(tmp_path, rows):
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="does not hold text"):
        documents_of(tmp_path / "a.parquet")


def test_packed_tables_of_a_folder_are_read(place):
    (place / "test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    (place / "train.jsonl").write_text('{"text": "two"}\n')
    assert documents_of(place).texts == ("one",)
