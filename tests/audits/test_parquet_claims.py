"""Parquet that somebody else made: nothing ends the process, and nothing unfolds beyond what its size allows."""

import io
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tailwise as tw
from tailwise.audits.codec import to_parquet
from tailwise.audits.parquet import from_parquet

TABLE = pa.table({
    "name": ["a", "b", None], "tensors": [["a.weight"], [], ["b.weight", "c"]],
    "rows": pa.array([1, 2, 3], pa.int64()), "alpha": [2.5, None, 3.0], "eigenvalues": [[1.0, 2.0], [3.0], []],
})  # fmt: skip


def written(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", **options)
    return sink.getvalue()


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def with_footer(data, change):
    (length,) = struct.unpack("<I", data[-8:-4])
    footer = change(data[-8 - length : -8])
    return data[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def replaced(old, new):
    def change(footer):
        assert old in footer
        return footer.replace(old, new, 1)

    return change


#: `repetition_type` of the group `eigenvalues`: optional, and required. Its histograms have one place too many then.
OPTIONAL, REQUIRED = b"\x35\x02\x18\x0beigenvalues", b"\x35\x00\x18\x0beigenvalues"


def contradicting():
    return with_footer(written(TABLE, store_schema=False), replaced(OPTIONAL, REQUIRED))


def nested(depth):
    """A footer alone: a column in groups in groups."""
    group, leaf, root = b"\x35\x00\x18\x01a\x15\x02\x00", b"\x15\x0a\x25\x02\x18\x01z\x00", b"\x48\x01r\x15\x02\x00"
    schema = b"\x19\xfc" + varint(depth + 2) + root + group * depth + leaf
    return with_footer(written(TABLE), lambda _: b"\x15\x02" + schema + b"\x16\x00\x19\x0c\x00")


@pytest.mark.parametrize(
    "table",
    [TABLE, TABLE.slice(0, 0), pa.table({}), TABLE.select(["rows"]).replace_schema_metadata({"tailwise": "{}"})],
)  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"row_group_size": 2}, {"store_schema": False},
     {"compression": "none"}],
)  # fmt: skip
def test_a_table_is_what_was_written(table, options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "zstd", **options})
    found = from_parquet(sink.getvalue())
    assert found.equals(pq.read_table(io.BytesIO(sink.getvalue())))
    assert found.equals(table)


def test_texts_that_are_kept_as_a_dictionary_are_texts():
    table = pa.table({"name": pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), ["x", "y"])})
    assert from_parquet(to_parquet(table))["name"].to_pylist() == ["x", "y", "x"]
    assert from_parquet(to_parquet(table)).schema.field("name").type == pa.string()


def test_statistics_that_contradict_the_columns_do_not_end_the_process(tmp_path):
    """Arrow's own accessor of a column's facts ends the process; so an audit with them is read elsewhere first."""
    audit = tw.audit({"l.weight": np.random.default_rng(0).standard_normal((20, 16))}, use_cache=False)
    folder = audit.save(f"{tmp_path}/a/")
    spectra = folder / "spectra.parquet"
    spectra.write_bytes(with_footer(spectra.read_bytes(), replaced(OPTIONAL, REQUIRED)))
    code = (
        "import sys, tailwise as tw\n"
        "try: tw.Audit.load(sys.argv[1])\n"
        "except tw.UnreadableError as error: print(error.exit_code, 'histogram' in str(error))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, folder], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3", "True"], done.stderr
    with pytest.raises(ValueError, match="histogram"):
        from_parquet(contradicting())


def test_one_long_text_for_every_row_is_refused_before_it_is_written_out():
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(300_000, np.int32)), ["a" * 1_000_000])
    for options in ({}, {"store_schema": False}):
        data = written(pa.table({"name": rows}), **options)
        assert len(data) < 10_000
        with pytest.raises(ValueError, match="too often"):
            from_parquet(data)
    lists = pa.ListArray.from_arrays(pa.array([0, 300_000], pa.int32()), rows)
    with pytest.raises(ValueError, match="too often"):
        from_parquet(written(pa.table({"tensors": lists})))


def test_pages_are_counted_where_the_footer_says_less():
    count = 30_000_000
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.array(np.zeros(count, np.int8)))
    data = written(pa.table({"e": lists}), data_page_size=1 << 30)
    honest = replaced(b"\x16" + varint(2 * count), b"\x16" + varint(6))
    for lying in (data, with_footer(data, honest)):
        assert len(lying) < 1000
        with pytest.raises(ValueError, match="claims"):
            from_parquet(lying)


def test_groups_within_groups_have_a_limit():
    assert from_parquet(nested(8)).num_columns == 1
    with pytest.raises(ValueError, match="without end"):
        from_parquet(nested(100_000))


@pytest.mark.parametrize("kind", [pa.binary(16), pa.decimal128(9)])
def test_texts_of_fixed_length_are_told(kind):
    with pytest.raises(ValueError, match="no table of an audit"):
        from_parquet(written(pa.table({"x": pa.nulls(2, kind)})))


def test_texts_that_share_their_beginnings_are_told():
    data = written(TABLE, use_dictionary=False, column_encoding={"name": "DELTA_BYTE_ARRAY"})
    with pytest.raises(ValueError, match="no table of an audit"):
        from_parquet(data)


def test_damage_of_a_footer_is_one_kind_of_error():
    data = written(TABLE)
    (length,) = struct.unpack("<I", data[-8:-4])
    kinds = set()
    for seed in range(1500):
        rng = random.Random(seed)
        found = bytearray(data)
        for _ in range(rng.choice((1, 1, 2))):
            place = len(found) - 8 - rng.randrange(length)
            found[place : place + rng.randrange(2)] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 1, 1, 2))))
        grown = len(found) - len(data)
        found[-8:-4] = struct.pack("<I", length + grown)
        try:
            from_parquet(bytes(found))
        except ValueError as error:
            kinds.add(str(error)[:20])
    assert len(kinds) > 10


def test_parquet_is_read_in_one_place():
    """A scan: Arrow's readers would believe whatever a file claims."""
    for path in Path(tw.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"\bread_table\(|ParquetFile\(|read_parquet\(|read_metadata\(|ParquetDataset\(", text):
            assert path.name == "parquet.py", path
