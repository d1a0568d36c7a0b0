"""From texts, folders, data sets and files of ids to windows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_models import make_tokenizer
from safetensors.numpy import save_file

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.sources import Documents, documents_of
from tailwise.models.evaluation.tokens import check_vocabulary, tokens_of, windows_of
from tailwise.models.walking.calibrate import sample_windows


def test_lines_with_the_separator_alone_divide_a_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n<|endoftext|>\n\nthree <|endoftext|> here\n<|endoftext|>\n\n")
    assert documents_of(path).texts == ("one\ntwo", "three <|endoftext|> here")


def test_a_file_without_separators_is_one_document_to_the_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\none\n\n")
    assert documents_of(path).texts == ("\none\n\n",)


def test_the_mark_that_an_editor_begins_a_file_with_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    assert documents_of(tmp_path / "a.txt").texts == ("one",)


def test_an_empty_separator_divides_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n<|endoftext|>\ntwo")
    assert len(documents_of(path, separator="").texts) == 1


def test_a_folder_is_read_below_in_the_order_of_paths_and_says_what_it_left_out(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.py").write_text("print()")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "z.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "picture.png").write_bytes(b"")
    found = documents_of(tmp_path)
    assert found.texts == ("first", "print()")
    assert "1 of 4 files do not end as a text" in found.notes[0]
    assert "z.txt" in found.notes[1]


def test_a_named_file_that_is_not_text_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnreadableError, match="UTF-8"):
        documents_of(path)


@pytest.mark.parametrize("name", ["nowhere.txt", "/no/where", "C:x"])
def test_what_is_not_there_is_an_error(name):
    with pytest.raises(UnreadableError, match="no such text"):
        documents_of(name)


@pytest.mark.parametrize("name", ["there/stdlibb.txt", "there/gone", "./org/name", "~/org/name", "org/name.md"])
def test_what_looks_like_a_path_is_never_looked_for_among_data_sets(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tailwise.models.evaluation.sources._rows", lambda *_: pytest.fail("a data set was asked for"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "stdlib.txt").write_text("x")
    with pytest.raises(UnreadableError, match="no such text file or folder") as caught:
        documents_of(name)
    assert ("there has stdlib.txt" in str(caught.value)) is name.startswith("there")


@pytest.mark.parametrize("name", ["org/name", "there/name:test", "org/name.md:test", "org/name/config:test:column"])
def test_what_may_be_a_data_set_is_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    monkeypatch.setattr("tailwise.models.evaluation.sources._rows", lambda *_: ["a row"])
    assert documents_of(name).texts == ("a row",)


def test_one_document_is_tokenized_as_the_tokenizer_does_by_itself(tokenizer, tmp_path):
    found = tokens_of(Documents(("ab c",)), tokenizer)
    assert found.ids.tolist() == tokenizer("ab c")["input_ids"]
    assert found.documents == 1


def test_each_of_several_documents_begins_with_bos(tokenizer):
    a, b = tokenizer("a")["input_ids"], tokenizer("b")["input_ids"]
    assert tokens_of(Documents(("a", "b")), tokenizer).ids.tolist() == [256, *a, 256, *b]


def test_without_bos_a_document_begins_with_eos():
    assert tokens_of(Documents(("a", "b")), make_tokenizer(bos=False)).ids[0] == 257


def test_several_files_are_so_many_documents(tokenizer, tmp_path):
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in paths:
        path.write_text("x = 1\n")
    assert tokens_of(paths, tokenizer).ids.tolist().count(256) == 2


@pytest.mark.parametrize("empty", ["", " \n"])
def test_a_text_of_nothing_is_refused(tokenizer, tmp_path, empty):
    path = tmp_path / "a.txt"
    path.write_text(empty)
    with pytest.raises(UsageError, match="no text"):
        tokens_of(path, tokenizer)


def test_a_text_without_a_tokenizer_is_refused():
    with pytest.raises(UsageError, match="takes a tokenizer"):
        tokens_of(Documents(("a",)))


def test_ids_are_read_from_every_kind_of_file(tmp_path):
    ids = np.arange(20)
    np.save(tmp_path / "a.npy", ids.astype(np.uint16))
    torch.save(torch.arange(20), tmp_path / "a.pt")
    save_file({"input_ids": ids, "other": ids[:3]}, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text(json.dumps(ids.tolist()))
    for name in ("a.npy", "a.pt", "a.safetensors", "a.json"):
        found = tokens_of(tmp_path / name)
        assert found.ids.tolist() == ids.tolist(), name
        assert found.ids.dtype == np.int64


def test_ids_in_the_home_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "a.npy", np.arange(5))
    assert tokens_of("~/a.npy").ids.tolist() == list(range(5))


def test_ids_at_hand_are_taken_as_they_are():
    assert tokens_of(torch.arange(5)).ids.tolist() == tokens_of(np.arange(5)).ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("values", [np.zeros((2, 3), dtype=int), np.zeros(3), [[1, 2], [3]], {"a": 1}, np.array(5)])
def test_what_are_no_ids_is_refused(values, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values.tolist() if isinstance(values, np.ndarray) else values))
    with pytest.raises(UsageError, match="token ids"):
        tokens_of(path)


def test_a_damaged_file_of_ids_is_unreadable(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"nothing")
    with pytest.raises(UnreadableError, match="token ids"):
        tokens_of(path)


def test_texts_and_ids_do_not_mix(tokenizer):
    with pytest.raises(UsageError, match="do not go together"):
        tokens_of([Documents(("a",)), np.arange(3)], tokenizer)


def test_windows_are_consecutive_and_the_rest_is_left_out():
    assert windows_of(np.arange(11), 5).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_some_windows_are_drawn_by_the_seed_and_stay_in_order():
    some = windows_of(np.arange(1000), 10, 5, seed=3)
    assert torch.equal(some, windows_of(np.arange(1000), 10, 5, seed=3))
    assert not torch.equal(some, windows_of(np.arange(1000), 10, 5, seed=4))
    assert some[:, 0].tolist() == sorted(set(some[:, 0].tolist()))
    assert (some[:, 0] % 10 == 0).all()


def test_without_a_seed_the_first_windows_are_taken():
    assert windows_of(np.arange(1000), 10, 2, seed=None)[:, 0].tolist() == [0, 10]


@pytest.mark.parametrize(
    ("count", "window", "most"), [(3, 5, None), (1, 2, None), (0, 2, None), (9, 1, None), (9, 3, 0)]
)
def test_no_window_is_an_error(count, window, most):
    with pytest.raises(UsageError):
        windows_of(np.arange(count), window, most)


@pytest.mark.parametrize("bad", [-1, 100])
def test_an_id_outside_the_vocabulary_is_refused(bad):
    with pytest.raises(UsageError, match=f"token id {bad}"):
        check_vocabulary(torch.tensor([[0, 1, bad]]), 100, "model")


@pytest.fixture
def table(tmp_path):
    """A data set of two splits as `datasets` saves it."""
    datasets = pytest.importorskip("datasets")
    place = tmp_path / "table"
    rows = {"text": ["one", "", "two"], "body": ["A", "B", "C"], "number": [1, 2, 3]}
    with quiet():
        parts = {"test": datasets.Dataset.from_dict(rows), "train": datasets.Dataset.from_dict({"text": ["x"]})}
        datasets.DatasetDict(parts).save_to_disk(place)
    return place


def test_a_data_set_gives_a_document_for_each_row_of_its_test_split(table):
    assert documents_of(str(table)).texts == ("one", "two")


def test_split_and_column_of_a_data_set_are_named_after_colons(table):
    assert documents_of(f"{table}:train").texts == ("x",)
    assert documents_of(f"{table}:test:body").texts == ("A", "B", "C")


@pytest.mark.parametrize(("rest", "said"), [(":dev", "no split 'dev'"), (":test:title", "no column 'title'"),
                                            (":test:number", "not hold text")])  # fmt: skip
def test_a_split_or_column_that_is_not_there_is_an_error(table, rest, said):
    with pytest.raises(UsageError, match=said):
        documents_of(f"{table}{rest}")


def test_a_table_in_a_file_is_a_data_set(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert documents_of(path).texts == ("one", "two")


def test_wikitext_is_one_document_joined_as_in_gptq(table, monkeypatch):
    from tailwise.models.evaluation import sources

    monkeypatch.setattr(sources, "KNOWN", {"known": (str(table), None, "test", "text", "\n\n")})
    assert documents_of("known").texts == ("one\n\n\n\ntwo",)


def test_a_folder_of_tables_is_a_data_set(tmp_path):
    place = tmp_path / "rows"
    place.mkdir()
    (place / "test.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert documents_of(place).texts == ("one", "two")


def test_a_split_of_a_text_file_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    with pytest.raises(UsageError, match="no kind of table"):
        documents_of(f"{path}:test")


def test_a_damaged_table_is_unreadable(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(UnreadableError, match="could not be loaded"):
        documents_of(path)


def test_a_data_set_on_the_hub_is_asked_for_by_name_configuration_split_and_column(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(place, config, *, trust_remote_code):
        asked.append((place, config, trust_remote_code))
        return {"train": datasets.Dataset.from_dict({"body": ["one"]})}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert documents_of("org/name/small:train:body").texts == ("one",)
    assert asked == [("org/name", "small", False)]


def test_a_hub_that_is_not_reached_is_unreadable(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(*_, **_how):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UnreadableError, match=r"no route"):
        documents_of("wikitext2")


class Beginning:
    """A tokenizer of characters that begins texts with 1, by itself or only where it is asked to."""

    bos_token_id, eos_token_id = 1, None

    def __init__(self, adds: bool) -> None:
        self.adds = adds

    def __call__(self, text, add_special_tokens=True):
        if isinstance(text, list):
            return {"input_ids": [[ord(c) for c in part] for part in text]}
        return {"input_ids": [*([1] if self.adds else []), *map(ord, text)]}


@pytest.mark.parametrize(("adds", "bos", "begins"), [
    (True, "auto", True), (False, "auto", False), (False, "always", True), (True, "never", False),
])  # fmt: skip
def test_windows_begin_with_bos_where_they_are_to(adds, bos, begins):
    tokens = tokens_of(Documents(("abcdefghij",), "made"), Beginning(adds), bos=bos)
    windows = windows_of(tokens, 4)
    if begins:
        assert windows.tolist() == [[1, *map(ord, part)] for part in ("abc", "def", "ghi")]
        return
    assert tokens.bos is None
    assert windows.flatten().tolist() == tokens_of(Documents(("abcdefghij",), "made"), Beginning(adds)).ids[:8].tolist()


def test_bos_that_is_not_there_is_an_error():
    with pytest.raises(UsageError, match="there is no token that begins a text"):
        tokens_of(np.arange(9), bos="always")
    with pytest.raises(UsageError, match="no way to begin windows"):
        tokens_of(np.arange(9), bos="perhaps")


def test_calibration_windows_begin_with_bos_too():
    found = sample_windows(np.arange(10, 90), 5, 8, 0, 1)
    assert found.shape == (5, 8)
    assert (found[:, 0] == 1).all()
    assert (found[:, 2:] - found[:, 1:-1] == 1).all()
