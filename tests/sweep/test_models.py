"""Lists of models, and queries to a Hub on loopback."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest

from tailwise.audits.codec import to_parquet
from tailwise.core.errors import UnreachableError, UnreadableError, UsageError
from tailwise.history.sweep.model_list import default_name, parse_query, read_models
from tailwise.history.sweep.results import read_numbers, stem
from tailwise.judging.compare.ranking import rank_numbers


def test_a_list_has_a_model_on_each_line_and_comments(tmp_path, caplog):
    (tmp_path / "models.txt").write_text(
        "\ufeff# all of them\norg/a\n\n  b/c@v1   # the second\norg/a\n", encoding="utf-8"
    )
    assert read_models(str(tmp_path / "models.txt")) == ["org/a", "b/c@v1"]
    assert "1 model is named twice" in caplog.text
    assert default_name(str(tmp_path / "models.txt")) == "models"


def test_a_list_in_an_object_store(s3):
    s3.pipe_file("bucket/lists/m.txt", "\ufefforg/a\r\norg/b\n".encode())
    assert read_models("s3://bucket/lists/m.txt") == ["org/a", "org/b"]
    s3.pipe_file("bucket/lists/bad.txt", b"org/a\xff")
    with pytest.raises(UsageError, match="is no text file"):
        read_models("s3://bucket/lists/bad.txt")


def test_a_sign_within_a_name_is_no_comment(tmp_path):
    (tmp_path / "m.txt").write_text("/models/run#3\ns3://bucket/a#b # the fourth\n#c\n\t# d\n/models/a\u2028b\n")
    assert read_models(str(tmp_path / "m.txt")) == ["/models/run#3", "s3://bucket/a#b", "/models/a\u2028b"]


@pytest.mark.parametrize("model", ["/" + "模" * 300, "x" * 20 + "/." + "y" * 79, "../../..", "a\0b", "/models/ü" * 40])
def test_a_models_files_have_names_that_every_file_system_takes_and_every_glob_finds(model, tmp_path):
    name = f"{stem(model)}.parquet"
    assert stem(model)[0] not in ".-"
    (tmp_path / name).touch()
    assert [path.name for path in tmp_path.glob("*.parquet")] == [name]
    assert len(name.encode()) < 120


@pytest.mark.parametrize(
    ("content", "message"), [(b"# nothing\n", "names no model"), (b"\xff\xfe\x00", "is no text file")]
)
def test_what_is_no_list(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_models(str(tmp_path / "x"))
    with pytest.raises(UsageError, match="is a folder"):
        read_models(str(tmp_path))
    with pytest.raises(UnreadableError, match="no such file"):
        read_models(str(tmp_path / "y"))


def test_a_query_asks_the_hub_what_it_says(hub):
    hub.server.api["/api/models"] = [{"id": "org/a"}, {"id": "org/b"}]
    assert read_models("hub:author=org,sort=downloads,limit=2") == ["org/a", "org/b"]
    assert read_models("hub:author=org,limit=1") == ["org/a"]


def test_a_query_reaches_the_client_field_by_field(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_models", lambda self, **fields: asked.append(fields) or [SimpleNamespace(id="a/b")]
    )
    assert read_models("hub:author=org,sort=downloads,search=llama") == ["a/b"]
    assert asked == [{"author": "org", "sort": "downloads", "search": "llama"}]


def test_a_query_of_everything_has_a_limit(caplog):
    assert parse_query("hub:sort=downloads") == {"sort": "downloads", "limit": 1000}
    assert "give a limit" in caplog.text
    assert parse_query("hub:filter=text-generation+safetensors, limit = 3") == {
        "filter": ["text-generation", "safetensors"],
        "limit": 3,
    }


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("hub:autor=org", "did you mean author"),
        ("hub:limit=many", "no field with its value"),
        ("hub:author", "no field"),
    ],
)
def test_a_query_that_cannot_be(query, message):
    with pytest.raises(UsageError, match=message):
        read_models(query)


def test_a_hub_that_does_not_answer(monkeypatch):
    def silent(self, **fields):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.list_models", silent)
    with pytest.raises(UnreachableError, match="could not be reached") as caught:
        read_models("hub:author=org")
    assert "download" not in str(caught.value)
    assert "a query asks the Hub itself" in str(caught.value)


def test_a_model_has_one_identity(tmp_path):
    (tmp_path / "list.txt").write_text("/models/x\n/models/x/\norg/name\n")
    assert read_models(str(tmp_path / "list.txt")) == ["/models/x", "org/name"]


def table_of(**columns):
    """The table of two models that were swept, with these columns in place of its own; None takes one away."""
    whole = {"status": ["done"] * 2, "model": ["org/a", "org/b"], "model_type": ["llama"] * 2, "mean_alpha": [3.0, 4.0]}
    return pa.table({name: values for name, values in {**whole, **columns}.items() if values is not None})


def written(folder, table, note):
    (folder / "models.parquet").write_bytes(to_parquet(table.replace_schema_metadata({"tailwise": note})))
    return str(folder)


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"status": None}, "{}"), ({"model": None}, "{}"), ({"model_type": None}, "{}"),
        ({"model": [1, 2]}, "{}"), ({"model": [None, "b"]}, "{}"), ({"model_type": [1, 2]}, "{}"),
        ({"mean_alpha": ["q", "r"]}, "{}"), ({"mean_alpha": [[1.0], [2.0]]}, "{}"), ({"status": [1, 2]}, "{}"),
        ({}, "[]"), ({}, "[1]"), ({}, "null"), ({}, "no JSON"),
    ],
)  # fmt: skip
def test_a_table_of_models_that_no_sweep_wrote_is_one_message(tmp_path, columns, note):
    folder = written(tmp_path, table_of(**columns), note)
    with pytest.raises(UnreadableError, match="is no table of models"):
        read_numbers(folder)


def test_numbers_that_have_no_order_are_not_known(tmp_path):
    numbers = read_numbers(written(tmp_path, table_of(mean_alpha=[float("nan"), float("inf")]), "{}"))
    assert [one.values["mean_alpha"] for one in numbers] == [None, None]
    assert "no model has one" in " ".join(rank_numbers(numbers, by="alpha").notes)


def test_a_table_of_a_version_with_fewer_numbers_is_ranked(tmp_path):
    numbers = read_numbers(written(tmp_path, table_of(mean_alpha=[4.0, 3.0]), '{"estimator": "ks"}'))
    assert [one.model for one in rank_numbers(numbers, by="alpha").models] == ["org/b", "org/a"]
