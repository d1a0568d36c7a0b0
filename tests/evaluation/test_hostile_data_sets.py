"""Texts and data sets on this machine: nothing outside is read or unfolded without bounds, honest ones are read."""

import bz2
import gzip
import json
import lzma
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.evaluation import table_files
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.sources import documents_of

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
