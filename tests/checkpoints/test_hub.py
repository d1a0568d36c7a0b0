"""The Hub: headers and ranges only, the cache first, and what each refusal says."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import save

from tailwise.checkpoints.hub import HubAddress, parse_hub, tell_of_request
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
W = torch.randn(500, 64)
SHARDS = [
    save({"embed.weight": W, "norm.weight": W[0].clone()}, {"format": "pt"}),
    save({"head.weight": W + 1}),
]
INDEX = {
    "weight_map": {
        "embed.weight": "model-00001-of-00002.safetensors",
        "norm.weight": "model-00001-of-00002.safetensors",
        "head.weight": "model-00002-of-00002.safetensors",
    }
}
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": SHARDS[0],
    "model-00002-of-00002.safetensors": SHARDS[1],
    "pytorch_model.bin": b"not read",
}


def header_bytes(data):
    return 8 + int.from_bytes(data[:8], "little")


def cache(tmp_path, files, *, ref="main"):
    store = tmp_path / "hub" / "models--org--model"
    snapshot = store / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (store / "refs").mkdir()
    (store / "refs" / ref).write_text(COMMIT)
    for name, data in files.items():
        (snapshot / name).write_bytes(data)
    return snapshot


def test_opening_reads_only_headers(hub):
    hub.publish(MODEL)
    checkpoint = open_checkpoint("org/model")
    assert checkpoint.revision == COMMIT
    assert checkpoint.uri == "hf://org/model"
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.tensors["head.weight"].shape == (500, 64)
    for name, data in list(MODEL.items())[2:4]:
        served = hub.server.served(name)
        assert all(first + count <= header_bytes(data) for first, count in served)
        assert sum(count for _, count in served) <= header_bytes(data) + 64
    assert not hub.server.served("pytorch_model.bin")


def test_reading_reads_only_its_range(hub):
    hub.publish(MODEL)
    checkpoint = open_checkpoint("org/model")
    hub.server.log.clear()
    assert checkpoint.read_rows("head.weight", 7, 9).equal(W[7:9] + 1)
    assert hub.server.served("") == [(header_bytes(SHARDS[1]) + 7 * 256, 2 * 256)]
    hub.server.log.clear()
    assert checkpoint.read("embed.weight").equal(W)
    assert hub.bytes_served == W.nbytes


def test_the_token_is_sent(hub):
    hub.publish(MODEL)
    open_checkpoint("org/model").read("norm.weight")
    assert set(hub.server.auth) == {"Bearer hf_secret"}


def test_the_token_does_not_follow_to_another_host(hub):
    """The Hub sends the readers of large files on to a CDN, with an address that is signed."""
    hub.publish({"model.safetensors": SHARDS[1]})
    hub.server.files["/cdn"] = SHARDS[1]
    cdn = hub.server.url.replace("127.0.0.1", "localhost") + "/cdn?signature=1"
    hub.server.redirects[f"/org/model/resolve/{COMMIT}/model.safetensors"] = cdn
    assert open_checkpoint("org/model").read_rows("head.weight", 7, 9).equal(W[7:9] + 1)
    assert {auth for path, auth in hub.server.seen if path == "/cdn"} == {None}
    assert hub.server.served("/cdn")[-1] == (header_bytes(SHARDS[1]) + 7 * 256, 2 * 256)


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", COMMIT])
def test_revisions(hub, revision):
    hub.publish(MODEL, revisions=(revision,))
    for checkpoint in (
        open_checkpoint("org/model", revision=revision),
        open_checkpoint(f"org/model@{revision}"),
        open_checkpoint(f"hf://org/model@{revision}"),
        open_checkpoint(f"hf://org/model@{revision}/model-00002-of-00002.safetensors"),
    ):
        assert checkpoint.revision == COMMIT
        assert "head.weight" in checkpoint.tensors


def test_identity_is_the_contents_hash(hub):
    hub.publish(MODEL)
    hub.publish(MODEL, repo="org/copy")
    one, two = open_checkpoint("org/model"), open_checkpoint("org/copy")
    assert one.identity("head.weight") == two.identity("head.weight")
    assert one.identity("head.weight") != one.identity("embed.weight")


def test_a_folder_within_a_repository(hub):
    hub.publish({"unet/diffusion_pytorch_model.safetensors": SHARDS[1], "README.md": b""})
    assert open_checkpoint("hf://org/model/unet").tensors.keys() == {"head.weight"}
    with pytest.raises(UnreadableError, match="the folders unet"):
        open_checkpoint("org/model")
    with pytest.raises(UnreadableError, match="no such file or folder in the repository"):
        open_checkpoint("hf://org/model/vae")


def test_a_broken_connection_is_taken_up_where_it_broke(hub):
    hub.publish(MODEL)
    checkpoint = open_checkpoint("org/model")
    hub.server.cut = 1
    assert checkpoint.read("embed.weight").equal(W)
    hub.server.cut = 100
    with pytest.raises(UnreadableError, match="could not be reached"):
        checkpoint.read("embed.weight")


def test_a_hub_without_ranges(hub):
    hub.publish(MODEL)
    hub.server.ranges = False
    with pytest.raises(UnreadableError, match=r"byte ranges[\s\S]*hf download org/model"):
        open_checkpoint("org/model@main")


def test_a_local_path_wins(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "m.safetensors").write_bytes(SHARDS[1])
    assert open_checkpoint("org/model").tensors.keys() == {"head.weight"}
    assert not hub.server.auth


def test_the_cache_is_read_without_the_network(hub, tmp_path):
    cache(tmp_path, MODEL)
    for address in ("org/model", f"org/model@{COMMIT}", "hf://org/model/model-00002-of-00002.safetensors"):
        checkpoint = open_checkpoint(address)
        assert checkpoint.revision == COMMIT
        assert checkpoint.read("head.weight").equal(W + 1)
    assert checkpoint.uri.startswith("hf://org/model")
    assert not hub.server.auth


def test_a_cache_that_lacks_shards_is_not_used(hub, tmp_path, monkeypatch):
    snapshot = cache(tmp_path, MODEL)
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    hub.publish(MODEL)
    assert open_checkpoint("org/model").read("head.weight").equal(W + 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnreadableError, match="only a part of the model is in the local cache"):
        open_checkpoint("org/model")


def test_offline_and_not_cached(hub, monkeypatch):
    hub.publish(MODEL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnreadableError, match="HF_HUB_OFFLINE is set and the model is not in the local cache"):
        open_checkpoint("org/model")
    assert not hub.server.auth


REFUSALS = {
    "missing": (404, "RepoNotFound", "neither a local path nor a model on the Hub"),
    "gated": (401, "GatedRepo", r"the model is gated[\s\S]*HF_TOKEN"),
    "revision": (404, "RevisionNotFound", "there is no revision 'v9'"),
    "denied": (403, "", r"denied access \(403\)[\s\S]*HF_TOKEN"),
    "broken": (500, "", "the Hub answered 500"),
}


@pytest.mark.parametrize(("status", "code", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_what_to_do(hub, status, code, message):
    hub.server.errors["/api"] = (status, code)
    with pytest.raises(UnreadableError, match=message) as caught:
        open_checkpoint("org/model@v9")
    assert caught.value.fix


def test_files_that_are_gated(hub):
    hub.publish(MODEL)
    hub.server.errors["/org/model/resolve"] = (401, "GatedRepo")
    with pytest.raises(UnreadableError, match="the model is gated"):
        open_checkpoint("org/model")


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnreadableError, match=r"could not be reached[\s\S]*check the network"):
        open_checkpoint("org/model")


def test_a_pickle_is_downloaded_and_it_is_said(hub, tmp_path, caplog):
    torch.save({"w": W}, tmp_path / "m.bin")
    hub.publish({"pytorch_model.bin": (tmp_path / "m.bin").read_bytes()})
    checkpoint = open_checkpoint("org/model")
    assert checkpoint.read("w").equal(W)
    assert "cannot be read in parts" in caplog.text


def test_the_environment_is_respected(hub, tmp_path, python):
    """Set before huggingface_hub is imported, as it is on a command line."""
    hub.publish(MODEL)
    code = (
        "from tailwise.checkpoints.open import open_checkpoint as o; c = o('org/model')\n"
        "print(c.revision, tuple(c.read_rows('head.weight', 1, 3).shape))"
    )
    home = {"HF_ENDPOINT": hub.server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_other"}
    done = subprocess.run([python, "-c", code], env=os.environ | home, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [COMMIT, "(2,", "64)"]
    assert set(hub.server.auth) == {"Bearer hf_other"}
    offline = os.environ | home | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, "-c", code], env=offline, capture_output=True, text=True, check=False)
    assert "HF_HUB_OFFLINE is set" in done.stderr


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("org/name", HubAddress("org/name", None)),
        ("org/name@v1", HubAddress("org/name", "v1")),
        ("org/name@refs/pr/1", HubAddress("org/name", "refs/pr/1")),
        ("hf://gpt2", HubAddress("gpt2", None)),
        ("hf://org/name", HubAddress("org/name", None)),
        ("hf://org/name/sub/f.safetensors", HubAddress("org/name", None, "sub/f.safetensors")),
        ("hf://org/name@refs/pr/1/sub", HubAddress("org/name", "refs/pr/1", "sub")),
        ("hf://org/name@v1", HubAddress("org/name", "v1")),
        ("https://huggingface.co/org/name", HubAddress("org/name", None)),
        ("https://huggingface.co/org/name/resolve/main/m.safetensors", None),
        ("gpt2", None),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("org/na me", None),
        ("org/name@", None),
        ("s3://bucket/key", None),
    ],
)
def test_addresses(text, address):
    assert parse_hub(text, None) == address


def test_two_revisions():
    with pytest.raises(UsageError, match="two revisions"):
        parse_hub("org/name@a", "b")
    assert parse_hub("org/name@a", "a") == HubAddress("org/name", "a")


def test_a_malformed_hub_address():
    with pytest.raises(UsageError, match="write it as hf://org/name"):
        open_checkpoint("hf:///bad address")


@pytest.mark.parametrize(
    ("name", "told"),
    [("org/model", "hf://org/model"), ("hf://org/model@main", "hf://org/model@main"), ("s3://bucket/x", "s3://bucket/x"),
     ("https://huggingface.co/org/model", "hf://org/model"), (".", ""), ("no such place", "")],
)  # fmt: skip
def test_what_a_file_names_is_told_where_it_is_no_place_on_this_machine(hub, caplog, name, told):
    tell_of_request(name, "x.audit")
    assert (f"x.audit names {told}, which" in caplog.text) if told else not caplog.text
    assert not hub.server.seen
