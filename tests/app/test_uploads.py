"""What comes as an upload is an audit, or refused."""

import io
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


def test_what_is_too_large_is_refused(app, client, folder):
    from dataclasses import replace

    desk = app.state.desk
    app.state.desk = replace(desk, settings=replace(desk.settings, largest_upload=1000))
    answer = upload(client, (folder / "base.audit").read_bytes())
    assert answer.status_code == 400
    assert "larger" in answer.text
