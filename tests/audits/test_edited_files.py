"""Audits that were edited, damaged or made to harm: one error that says which file and why, and never other numbers."""

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import tailwise as tw
from tailwise.audits.codec import MEMBERS
from tailwise.audits.trusted import doubt, usable


@pytest.fixture(scope="module")
def audit():
    rng = np.random.default_rng(0)
    model = {f"model.layers.{n}.mlp.up_proj.weight": rng.standard_normal((60, 50)) for n in range(3)}
    return tw.audit({**model, "model.norm.weight": np.ones(9)}, use_cache=False)


@pytest.fixture
def edited(audit, tmp_path):
    """Save the audit, change one part of it, and give its path."""
    path = audit.save(tmp_path / "edited.audit")

    def edit(member, change):
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in MEMBERS}
        parts[member] = change(parts[member])
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        return path

    return edit


def of_table(change):
    def on_bytes(data):
        sink = io.BytesIO()
        pq.write_table(change(pq.read_table(io.BytesIO(data))), sink)
        return sink.getvalue()

    return on_bytes


def column(name, make):
    return of_table(lambda table: table.set_column(table.column_names.index(name), name, make(table.column(name))))


def of_json(**changes):
    def on_bytes(data):
        document = json.loads(data)
        for name, value in changes.items():
            place, _, inner = name.partition("__")
            if inner:
                document[place][inner] = value
            else:
                document[place] = value
        return json.dumps(document).encode()

    return on_bytes


def first(value):
    return lambda old: pa.chunked_array([pa.array([value, *old.to_pylist()[1:]], old.type)])


LAYERS = {
    "NaN": column("alpha", first(float("nan"))),
    "infinity": column("alpha", first(float("inf"))),
    "text for a number": column("alpha", lambda old: old.cast(pa.string())),
    "lists for numbers": column("alpha", lambda old: pa.array([[1.0]] * len(old))),
    "numbers for names": column("name", lambda old: pa.array(range(len(old)))),
    "a name twice": column("name", lambda old: pa.array(["a"] * len(old))),
    "no name": column("name", first(None)),
    "no status": column("status", first(None)),
    "negative rows": column("rows", first(-5)),
    "more entries than numbers": column("rows", first(2**62)),
    "fractions for rows": column("rows", lambda old: old.cast(pa.float64())),
    "other rows": column("rows", first(7)),
    "a gap in a list": column("tensors", first([None])),
    "no role": of_table(lambda table: table.drop_columns(["role"])),
    "a column twice": of_table(lambda table: table.append_column("alpha", table.column("alpha"))),
    "an unknown column of text": of_table(lambda table: table.append_column("x", table.column("name"))),
    "a name of megabytes": column("name", first("a" * 3_000_000)),
    "a tensor of megabytes": column("tensors", first(["a" * 3_000_000])),
    "a column of a long name": of_table(lambda table: table.append_column("a" * 3_000_000, table.column("alpha"))),
    "no parquet": lambda _: b"PAR1" + bytes(40) + b"PAR1",
}
SPECTRA = {
    "gaps for eigenvalues": column("eigenvalues", first(None)),
    "a gap among eigenvalues": column("eigenvalues", first([None] * 50)),
    "NaN": column("eigenvalues", first([float("nan")] * 50)),
    "text": column("eigenvalues", lambda old: pa.array([["x"]] * len(old))),
    "negative": column("eigenvalues", first([-1.0] * 50)),
    "too few": column("eigenvalues", first([1.0])),
    "no shape": column("rows", first(0)),
    "a negative shape": column("cols", first(-1)),
    "slices without end": column("slices", first(2**31 - 1)),
    "error without bound": column("error_bound", first(float("inf"))),
    "no solver": column("solver", first(None)),
    "no kind": of_table(lambda table: table.drop_columns(["kind"])),
    "no spectrum of a layer": of_table(lambda table: table.slice(1)),
}
PROVENANCE = {
    "another version": of_json(audit_format=99),
    "a recipe of text": of_json(recipe="ks"),
    "an estimator that is a number": of_json(recipe__estimator=5),
    "a fraction that is text": of_json(recipe__k_frac="0.1"),
    "a fraction above one": of_json(recipe__k_frac=7),
    "an impossible choice": of_json(recipe__conv="sideways"),
    "metrics that are no list": of_json(recipe__metrics="alpha"),
    "a seed that is true": of_json(recipe__seed=True),
    "versions that are numbers": of_json(versions={"tailwise": 1}),
    "notes that are numbers": of_json(notes=[1]),
    "a selection of numbers": of_json(selection={"roles": [1]}),
    "seconds of text": of_json(seconds="long"),
    "NaN seconds": of_json(seconds=float("nan")),
    "a config with NaN": of_json(config={"hidden_size": float("nan")}),
    "half a character": of_json(model="\ud800"),
    "a model of megabytes": of_json(model="a" * 3_000_000),
    "a revision of megabytes": of_json(revision="a" * 3_000_000),
    "a version of megabytes": of_json(versions={"tailwise": "a" * 3_000_000}),
    "a package of megabytes": of_json(versions={"a" * 3_000_000: "1"}),
    "a list": lambda _: b"[]",
    "nesting": lambda _: b"[" * 100_000,
    "nothing": lambda _: b"{}",
    "no revision": lambda data: json.dumps({k: v for k, v in json.loads(data).items() if k != "revision"}).encode(),
}
EDITS = [
    pytest.param(member, change, id=f"{member.partition('.')[0]}: {name}")
    for member, changes in zip(MEMBERS, (LAYERS, SPECTRA, PROVENANCE), strict=True)
    for name, change in changes.items()
]


@pytest.mark.parametrize(("member", "change"), EDITS)
def test_an_edited_audit_is_told_at_loading(edited, member, change):
    path = edited(member, change)
    with pytest.raises(tw.UnreadableError, match="not a readable audit") as caught:
        tw.Audit.load(path)
    assert caught.value.exit_code == 3
    assert caught.value.where == path
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("column", ["cols", "kind", "degenerate", "reused", "seconds"])
def test_what_has_a_default_may_be_missing_and_what_is_unknown_is_kept_as_a_number(edited, column, audit):
    gone = {"degenerate", "reused", "seconds"} & {column}
    path = edited(
        "layers.parquet",
        of_table(lambda table: table.drop_columns(list(gone)).append_column("mine", pa.array([2.0] * len(table)))),
    )
    loaded = tw.Audit.load(path)
    assert [row.name for row in loaded.rows] == [row.name for row in audit.rows]
    assert next(iter(loaded)).mine == 2.0


def test_an_audit_that_was_packed_again_with_compression_is_read(audit, tmp_path):
    path = audit.save(tmp_path / "a.audit")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in MEMBERS}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert tw.Audit.load(path).rows == audit.rows


def test_a_part_that_unfolds_without_end_is_refused_before_it_does(audit, tmp_path):
    path = audit.save(tmp_path / "a.audit")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in MEMBERS}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data if name != "provenance.json" else b" " * (1 << 28))
    with pytest.raises(tw.UnreadableError, match="would unfold"):
        tw.Audit.load(path)


def test_a_table_of_equal_values_without_end_is_refused_before_it_is_read(edited):
    def many(table):
        nothing = pa.nulls(1 << 22, pa.float64())
        return pa.table({"name": pa.DictionaryArray.from_arrays(pc.fill_null(pa.nulls(1 << 22, pa.int32()), 0), ["a"]),
                         **{str(number): nothing for number in range(40)}})  # fmt: skip

    path = edited("layers.parquet", of_table(many))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(tw.UnreadableError, match="claims"):
        tw.Audit.load(path)


@pytest.mark.parametrize("command", ["show", "diagnose", "compare", "check", "report", "rank"])
def test_every_command_ends_with_3_and_one_message(edited, command, audit, tmp_path):
    from typer.testing import CliRunner

    from tailwise.cli.main import app

    path = str(edited("layers.parquet", LAYERS["NaN"]))
    whole = str(audit.save(tmp_path / "whole.audit"))
    gates = tmp_path / "gates.toml"
    gates.write_text('expect = ["alpha > 0"]')
    more = {"compare": [whole], "rank": [whole, whole], "check": ["--expect", str(gates)],
            "report": ["-o", str(tmp_path / "r.html")]}  # fmt: skip
    done = CliRunner().invoke(app, [command, path, *more.get(command, [])])
    assert isinstance(done.exception, tw.UnreadableError)
    assert done.exception.exit_code == 3


def test_integers_of_any_width_are_read(edited, audit):
    path = edited("layers.parquet", column("slices", lambda old: old.cast(pa.int64())))
    assert tw.Audit.load(path).rows == audit.rows


def test_a_row_of_no_role_that_is_known_is_kept(audit, tmp_path):
    rows = [replace(row, role="of-another-version") for row in audit.rows]
    layers = {layer.row.name: replace(layer, row=replace(layer.row, role="of-another-version")) for layer in audit}
    path = tw.Audit(rows, layers, audit.provenance).save(tmp_path / "a.audit")
    assert tw.diagnose(tw.Audit.load(path)).looked


@pytest.mark.parametrize("kind", ["pipe", "device", "folder of pipes"])
def test_what_is_no_file_is_told_at_once(tmp_path, kind):
    import os

    path = tmp_path / "x.audit"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
        for name in MEMBERS:
            os.mkfifo(path / name)
    code = f"import tailwise as tw\ntry: tw.Audit.load({str(path)!r})\nexcept tw.UnreadableError as e: print(e.what)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "a file was expected" in done.stdout


def test_an_exponent_whose_square_is_no_float_is_doubted_and_raises_nothing(audit):
    row = replace(audit.rows[0], metrics={"alpha": 1e200, "alpha_sigma": 1e-200, "ks_distance": 0.01})
    assert doubt(row) != ""
    assert usable(row, "alpha") is None


def test_notes_and_reasons_without_measure_are_shortened_where_they_are_read(edited):
    edited("provenance.json", of_json(notes=["a" * 3_000_000]))
    found = tw.Audit.load(edited("layers.parquet", column("reason", first("b" * 3_000_000))))
    assert found.provenance.notes[0].endswith("… (3000000 signs)")
    assert found.rows[0].reason.startswith("bbb")
    assert len(found.rows[0].reason) < 20_000 > len(found.provenance.notes[0])


@pytest.mark.parametrize("text", [b"null", b"1", b"[]", b'"x"'])
def test_a_provenance_that_is_no_mapping_is_told(edited, text):
    with pytest.raises(tw.TailwiseError, match="provenance is no mapping"):
        tw.Audit.load(edited("provenance.json", lambda _: text))
