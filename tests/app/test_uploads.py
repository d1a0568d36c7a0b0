"""What comes as an upload is an audit, or refused."""

import io
import json
import os
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailwise.audits.codec import MEMBERS


def upload(client, data, name="x.audit"):
    return client.post("/uploads", files={"file": (name, data)})


def test_an_audit_is_kept_and_shown(client, folder):
    answer = upload(client, (folder / "base.audit").read_bytes(), "../../etc/ev il.audit")
    assert answer.status_code == 200
    address = answer.headers["hx-redirect"]
    assert "etc-ev" not in address
    assert client.get(address).status_code == 200


def test_the_same_name_twice_is_two_files(client, folder):
    data = (folder / "base.audit").read_bytes()
    assert upload(client, data).headers["hx-redirect"] != upload(client, data).headers["hx-redirect"]


def zipped(parts, compression=zipfile.ZIP_STORED):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return sink.getvalue()


def parts_of(folder):
    with zipfile.ZipFile(folder / "base.audit") as archive:
        return {name: archive.read(name) for name in MEMBERS}


def bomb():
    table = pa.table(
        {"name": pa.array(["x"] * 3_000_000).dictionary_encode(), "zeros": pa.nulls(3_000_000, pa.float64())}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["empty", "text", "compressed", "more", "less", "json", "parquet", "bomb", "lying"])
def test_anything_else_is_refused_and_leaves_nothing(client, folder, settings, kind):
    parts = parts_of(folder)
    data = {
        "empty": b"",
        "text": b"hello",
        "compressed": zipped(parts, zipfile.ZIP_DEFLATED),
        "more": zipped({**parts, "../../evil.py": b"x"}),
        "less": zipped({MEMBERS[2]: parts[MEMBERS[2]]}),
        "json": zipped({**parts, MEMBERS[2]: b"[" * 100_000}),
        "parquet": zipped({**parts, MEMBERS[0]: b"PAR1" + bytes(100) + b"PAR1"}),
        "bomb": zipped({**parts, MEMBERS[1]: bomb()}),
        "lying": zipped({**parts, MEMBERS[0]: parts[MEMBERS[1]]}),
    }[kind]
    answer = upload(client, data)
    assert answer.status_code == 400
    assert "audit" in answer.text
    assert not list((settings.state / "audits").iterdir())
    assert not list((settings.state / "incoming").glob("*")) if (settings.state / "incoming").exists() else True


def provenance(parts, **changes):
    return zipped({**parts, MEMBERS[2]: json.dumps({**json.loads(parts[MEMBERS[2]]), **changes}).encode()})


def layers(parts, **columns):
    table = pq.read_table(io.BytesIO(parts[MEMBERS[0]]))
    for name, value in columns.items():
        table = table.set_column(
            table.column_names.index(name), name, pa.array([value] * table.num_rows, pa.scalar(value).type)
        )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return zipped({**parts, MEMBERS[0]: sink.getvalue()})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("halves of characters", {"model": "\ud800"}),
        ("halves of characters below", {"recipe": {"estimator": ["\udfff"]}}),
        ("a list for a mapping", {"recipe": []}),
        ("a number for a word", {"started": 1e300}),
        ("a mapping for a word", {"model": {"a": 1}}),
        ("no number", {"seconds": float("nan")}),
        ("a word for a number", {"config": "x"}),
    ],
)
def test_a_provenance_that_would_break_pages_is_refused(client, folder, kind, changes):
    answer = upload(client, provenance(parts_of(folder), **changes))
    assert answer.status_code == 400, kind
    assert client.get("/models").status_code == 200


@pytest.mark.parametrize("columns", [{"alpha": float("nan")}, {"alpha": float("inf")}, {"alpha": "high"}])
def test_numbers_that_are_none_are_refused(client, folder, columns):
    assert upload(client, layers(parts_of(folder), **columns)).status_code == 400


def test_one_file_that_cannot_be_judged_leaves_the_list(client, app, folder, monkeypatch):
    (folder / "odd.audit").write_bytes(provenance(parts_of(folder), started=1e300))
    (folder / "strange.audit").write_bytes(layers(parts_of(folder), alpha="high"))
    app.state.context.workspace.look_again()
    answer = client.get("/models")
    assert answer.status_code == 200
    assert "org/base" in answer.text


@pytest.mark.parametrize("name", ["模" * 200 + ".audit", "a" * 500, "\0.audit", "\u202egnp.audit", 'q"uo;te\r\n.audit'])
def test_any_name_can_be_brought(client, folder, name):
    answer = upload(client, (folder / "base.audit").read_bytes(), name)
    assert answer.status_code == 200
    assert client.get(answer.headers["hx-redirect"]).status_code == 200


def test_what_a_killed_server_left_of_an_upload_goes(client, folder, settings):
    left = settings.state / "incoming" / ".left.audit"
    left.parent.mkdir()
    left.write_text("half")
    os.utime(left, (1, 1))
    assert upload(client, (folder / "base.audit").read_bytes()).status_code == 200
    assert not left.exists()


def test_what_was_not_looked_at_is_not_shown(app, client, folder, monkeypatch):
    from tailwise.app import uploads
    from tailwise.app.workspace.workspace import Workspace

    seen = []

    def look(path, most):
        seen.extend(entry.path for entry in Workspace([path.parent.parent]).entries())

    monkeypatch.setattr(uploads, "check", look)
    assert upload(client, (folder / "base.audit").read_bytes()).status_code == 200
    assert seen == []


def test_what_is_too_large_is_refused(app, client, folder):
    from dataclasses import replace

    context = app.state.context
    app.state.context = replace(context, settings=replace(context.settings, largest_upload=1000))
    answer = upload(client, (folder / "base.audit").read_bytes())
    assert answer.status_code == 400
    assert "larger" in answer.text
