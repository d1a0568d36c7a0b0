"""What lies beside a model's weights is bounded before it is read whole, in a folder and on the Hub."""

import base64
import json
import shutil
import struct

import pytest

from tailwise.core.errors import UnreadableError
from tailwise.models.evaluation.adapters import settings_of
from tailwise.models.evaluation.loading import load_tokenizer
from tailwise.models.evaluation.own_config import config_of
from tailwise.models.evaluation.own_documents import check_processor_settings
from tailwise.models.evaluation.own_tokenizer import check_tokenizer
from tailwise.models.evaluation.sources import Documents
from tailwise.models.evaluation.tokens import tokens_of

pytest.importorskip("transformers")


@pytest.fixture
def place(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def changed(place, name, **values):
    file = place / name
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**known, **values}))


def enlarged(file, nbytes):
    with file.open("ab") as end:
        end.truncate(nbytes)  # without taking the disk


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [("chat_template.jinja", 17 << 20), ("chat_template.json", 17 << 20), ("tokenizer_config.json", 17 << 20),
     ("special_tokens_map.json", 17 << 20), ("additional_chat_templates/a.jinja", 17 << 20),
     ("tokenizer.json", 129 << 20), ("vocab.json", 129 << 20), ("tokenizer.model", 129 << 20)],
)  # fmt: skip
def test_a_file_that_is_read_whole_is_bounded(place, name, nbytes):
    (place / name).parent.mkdir(exist_ok=True)
    enlarged(place / name, nbytes)
    with pytest.raises(UnreadableError, match="no file of its kind"):
        load_tokenizer(place)


def test_a_config_is_bounded_and_other_files_are_not(place):
    enlarged(place / "results.json", 200 << 20)
    assert config_of(str(place)).model_type == "llama"
    enlarged(place / "config.json", 17 << 20)
    with pytest.raises(UnreadableError, match="no file of its kind"):
        config_of(str(place))


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja",
     "preprocessor_config.json", "special_tokens_map.json", "additional_chat_templates/a.jinja"],
)  # fmt: skip
def test_settings_that_are_a_link_to_elsewhere_are_not_read(place, tmp_path, name):
    (tmp_path / "private").write_text('{"token": "secret"}')
    (place / name).unlink(missing_ok=True)
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).symlink_to(tmp_path / "private")
    for read in (config_of, load_tokenizer):
        with pytest.raises(UnreadableError, match="outside the model's folder"):
            read(str(place))


def test_vocabularies_behind_links_and_settings_behind_links_within_are_read(place, tmp_path):
    (place / "tokenizer.json").rename(tmp_path / "tokenizer.json")  # as the Hub's client linked large files
    (place / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    (place / "config.json").rename(place / "other.json")
    (place / "config.json").symlink_to("other.json")
    assert config_of(str(place)).model_type == "llama"
    assert len(load_tokenizer(place)) > 0


def test_the_settings_of_an_adapter_are_its_own(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "private").write_text('{"base_model_name_or_path": "secret"}')
    (tmp_path / "adapter" / "adapter_config.json").symlink_to(tmp_path / "private")
    with pytest.raises(UnreadableError, match="outside the model's folder"):
        settings_of(tmp_path / "adapter")


def test_the_same_on_the_hub_before_it_is_fetched(place, hub):
    files = {file.name: file.read_bytes() for file in place.iterdir()} | {"chat_template.jinja": bytes(17 << 20)}
    hub.publish(files)
    with pytest.raises(UnreadableError, match="no file of its kind"):
        load_tokenizer("org/model")
    assert not hub.server.served("chat_template.jinja")


def test_a_tokenizer_on_the_hub_is_gone_through_before_it_is_read(place, hub):
    table = {"type": "Precompiled", "precompiled_charsmap": "AAAA/////w=="}
    changed(place, "tokenizer.json", normalizer=table)
    hub.publish({file.name: file.read_bytes() for file in place.iterdir()})
    with pytest.raises(UnreadableError, match="not as long as it says"):
        load_tokenizer("org/model")


def test_so_is_the_one_that_its_settings_name_for_newer_versions(place):
    table = {"type": "Precompiled", "precompiled_charsmap": "AAAA/////w=="}
    changed(place, "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])
    (place / "tokenizer.4.0.0.json").write_text((place / "tokenizer.json").read_text())
    changed(place, "tokenizer.4.0.0.json", normalizer=table)
    with pytest.raises(UnreadableError, match="not as long as it says"):
        load_tokenizer(place)


@pytest.mark.parametrize(
    "settings",
    [{"vocab": "/dev/zero"}, {"merges": "../elsewhere.txt"}, {"gguf_file": "../../other.gguf"},
     {"vocab_file": "/dev/zero"}],
)  # fmt: skip
def test_settings_name_no_files_elsewhere(place, settings):
    changed(place, "tokenizer_config.json", **settings)
    with pytest.raises(UnreadableError, match="name of another file"):
        load_tokenizer(place)


def test_names_of_files_that_were_left_in_settings_are_no_harm(place):
    changed(place, "tokenizer_config.json", vocab_file=None, tokenizer_file="/root/.cache/somewhere/tokenizer.json")
    assert load_tokenizer(place)("a cat")["input_ids"]


def test_tokens_are_numbered_within_a_vocabulary(place):
    changed(place, "tokenizer_config.json", added_tokens_decoder={"3000000000": {"content": "<x>"}})
    with pytest.raises(UnreadableError, match="no vocabulary"):
        load_tokenizer(place)


def model(kind, **more):
    return {"model": {"type": kind, "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1}, **more}}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WITHOUT_MEASURE = {
    "bytes of bytes": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 60}}, "times as"),
    "bytes of bytes, cut": ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 40}}, "times as long"),
    "begun": ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "times as long"),
    "mapped": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(
        b"\4\0\0\0\0\0\0\0" + b"x" * 10**6 + b"\0").decode()}}, "times as long"),
    "long words": (model("WordPiece", continuing_subword_prefix="##", max_input_chars_per_word=10**9), "square"),
    "a long prefix": (model("WordPiece", continuing_subword_prefix="#" * 10**6, max_input_chars_per_word=9), "a piece"),
    "a deep tree": (model("Unigram", unk_id=0, vocab=[["<unk>", 0.0], ["a" * 10**6, -1.0]]), "a piece of 1000000"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WITHOUT_MEASURE)
def test_what_takes_time_or_room_without_measure_is_refused(place, kind):
    said, words = WITHOUT_MEASURE[kind]
    changed(place, "tokenizer.json", **said)
    with pytest.raises(UnreadableError, match=words):
        load_tokenizer(place)


def test_bytes_once_are_what_models_carry(place):
    changed(place, "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES]})
    assert load_tokenizer(place)("a cat")["input_ids"]


def test_what_the_library_gives_up_on_is_one_error(place):
    pattern = {"Regex": "(?:a|a)+(?:b|d)"}
    changed(place, "tokenizer.json", pre_tokenizer={
        "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})  # fmt: skip
    changed(place, "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    with pytest.raises(UnreadableError, match="gave up"):
        tokens_of(Documents(("a" * 40 + " b",)), load_tokenizer(place))


def field(number, data):
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(value):
    low = []
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def pieces(*texts, table=b""):
    listed = b"".join(field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", -1.0)) for text in texts)
    return listed + field(2, varint(3 << 3) + varint(1)) + field(3, field(2, table))


@pytest.mark.parametrize(
    ("data", "words"),
    [(pieces("<unk>", "a", table=b"\xf0\xff\xff\xff"), "not as long as it says"), (pieces("a" * 10**5), "a piece of")],
)
def test_a_model_of_pieces_is_gone_through_too(place, data, words):
    (place / "tokenizer.model").write_bytes(data)
    with pytest.raises(UnreadableError, match=words):
        check_tokenizer(str(place))


@pytest.mark.parametrize("data", [pieces("<unk>", "a", table=b"\0\0\0\0"), b"YQ== 0\nYg== 1\n", b"\xff" * 99, b""])
def test_an_honest_one_and_any_other_kind_is_left_to_who_reads_it(place, data):
    (place / "tokenizer.model").write_bytes(data)
    check_tokenizer(str(place))


@pytest.fixture
def private(tmp_path):
    """A file of someone else beside the model's folder."""
    place = tmp_path / "private"
    place.mkdir()
    (place / "vocab.json").write_text('{"<unk>": 0, "a": 1}')
    (place / "tokenizer.4.0.0.json").write_text("{}")
    return place


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "said",
    [{"vocab_file": "{}/vocab.json"}, {"vocab_file": "../private/vocab.json"}, {"entity_vocab_file": "{}/vocab.json"},
     {"sp_model_kwargs": {"model_file": "{}/vocab.json"}}, {"init_inputs": ["{}/vocab.json"]},
     {"fast_tokenizer_files": ["../private/tokenizer.4.0.0.json"]}, {"sudachi_kwargs": {"resource_dir": "{}"}},
     {"mecab_kwargs": {"mecab_option": "-r {}/vocab.json"}}, {"anything": "{}/vocab.json"}],
    ids=str,
)  # fmt: skip
def test_no_setting_of_a_tokenizer_leads_to_a_file_of_others(place, private, file, said):
    changed(place, file, **json.loads(json.dumps(said).replace("{}", str(private))))
    with pytest.raises(UnreadableError, match="name of another file"):
        load_tokenizer(place)


def test_nor_does_a_plain_name_where_the_command_is_run(place, private, monkeypatch):
    monkeypatch.chdir(private)
    changed(place, "tokenizer_config.json", emoji_file="vocab.json")
    with pytest.raises(UnreadableError, match="name of another file"):
        load_tokenizer(place)


def test_a_class_that_takes_files_by_undeclared_settings_reads_none_of_others(place, private):
    (place / "tokenizer.json").unlink()
    (place / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GemmaTokenizer", "vocab_file": str(private / "vocab.json")})
    )
    with pytest.raises(UnreadableError, match="name of another file"):
        load_tokenizer(place)


def test_the_map_of_tokens_is_not_read_over_the_models_own_file(place, private):
    changed(place, "special_tokens_map.json", tokenizer_file=str(private / "tokenizer.4.0.0.json"))
    with pytest.raises(UnreadableError, match="name of another file"):
        load_tokenizer(place)


def test_settings_that_name_nothing_elsewhere_are_taken(place, private, monkeypatch):
    monkeypatch.chdir(private)
    (private / "left").write_text("")
    changed(
        place, "tokenizer_config.json", vocab_file="/no/such/folder/vocab.json", unk_token="<unk>",
        name_or_path=str(private), special_tokens_map_file=str(private / "vocab.json"), padding_side="left",
        tokenizer_file=str(private / "vocab.json"), chat_template="{{ messages }} /etc/passwd",
    )  # fmt: skip
    assert load_tokenizer(place)("a cat")["input_ids"]


def test_a_models_own_file_may_be_named(place):
    changed(place, "tokenizer_config.json", vocab_file=str(place / "tokenizer.json"))
    assert load_tokenizer(place)("a cat")["input_ids"]


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("said", [{"repo_path": "org/theirs", "class_info_file": "names.json"},
                                  {"image_processor": {"font_path": "{}/vocab.json"}}], ids=str)  # fmt: skip
def test_no_setting_of_a_processor_does_either(place, private, name, said):
    (place / name).write_text(json.dumps(said).replace("{}", str(private)))
    with pytest.raises(UnreadableError, match="name of another file"):
        check_processor_settings(str(place))


def test_an_honest_processor_is_taken(place):
    (place / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 8}, "_name_or_path": "org/a"}))
    check_processor_settings(str(place))
