"""Parts of models that ran on several ranks: joined where the axis is known, else said to be parts."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError

DIM, HEADS, KV, INNER, VOCAB = 32, 4, 2, 48, 40
GENERATOR = torch.Generator().manual_seed(0)


def llama() -> dict[str, torch.Tensor]:
    def random(*shape):
        return torch.randn(*shape, generator=GENERATOR)

    block = {
        "attention.wq.weight": random(DIM, DIM),
        "attention.wk.weight": random(DIM // HEADS * KV, DIM),
        "attention.wv.weight": random(DIM // HEADS * KV, DIM),
        "attention.wo.weight": random(DIM, DIM),
        "feed_forward.w1.weight": random(INNER, DIM),
        "feed_forward.w2.weight": random(DIM, INNER),
        "feed_forward.w3.weight": random(INNER, DIM),
        "attention_norm.weight": random(DIM),
    }
    return {
        "tok_embeddings.weight": random(VOCAB, DIM),
        **{f"layers.0.{name}": tensor for name, tensor in block.items()},
        "norm.weight": random(DIM),
        "output.weight": random(VOCAB, DIM),
        "rope.freqs": random(DIM // HEADS // 2),
    }


WHOLE = llama()


def split(ranks: int, *, by_vocabulary: bool) -> list[dict[str, torch.Tensor]]:
    """As Meta's own parallel layers hold them."""

    def axis(name):
        if name.startswith("tok_embeddings"):
            return 0 if by_vocabulary else 1
        return 1 if name.split(".")[-2] in ("wo", "w2") else 0

    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for name, tensor in WHOLE.items():
        pieces = tensor.chunk(ranks, axis(name)) if tensor.ndim > 1 else [tensor] * ranks
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def written(folder, ranks, *, by_vocabulary=False, kind="pth"):
    for rank, part in enumerate(split(ranks, by_vocabulary=by_vocabulary)):
        path = folder / f"consolidated.{rank:02d}.{kind}"
        torch.save(part, path) if kind == "pth" else save_file(part, path)
    (folder / "params.json").write_text(json.dumps({"dim": DIM, "n_heads": HEADS, "vocab_size": VOCAB}))
    return folder


@pytest.mark.parametrize("by_vocabulary", [True, False])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_llama_is_joined_from_the_parts_of_its_ranks(tmp_path, ranks, kind, by_vocabulary):
    written(tmp_path, ranks, by_vocabulary=by_vocabulary, kind=kind)
    for source in (tmp_path, tmp_path / f"consolidated.{ranks - 1:02d}.{kind}"):
        opened = open_checkpoint(source)
        assert opened.tensors.keys() == WHOLE.keys()
        for name, tensor in WHOLE.items():
            assert opened.tensors[name].shape == tensor.shape
            assert opened.read(name).equal(tensor)
            assert opened.tensors[name].nbytes == tensor.nbytes
        rows = [opened.read_rows("layers.0.feed_forward.w1.weight", i, min(i + 5, INNER)) for i in range(0, INNER, 5)]
        assert torch.cat(rows).equal(WHOLE["layers.0.feed_forward.w1.weight"])
        assert opened.read_rows("output.weight", 3, 3).shape == (0, DIM)
        assert any(f"{ranks} ranks" in note for note in opened.notes) == (ranks > 1)
        assert len({opened.identity(name) for name in WHOLE}) == len(WHOLE)


def test_joined_parts_measure_as_the_whole(tmp_path):
    audit = tw.audit(written(tmp_path, 2, by_vocabulary=True))
    assert {row.name for row in audit.rows if row.measured} == {
        name.removesuffix(".weight") for name, tensor in WHOLE.items() if tensor.ndim == 2
    }
    for layer in audit:
        values = torch.linalg.svdvals(WHOLE[f"{layer.row.name}.weight"].double()) ** 2
        assert layer.spectrum.eigenvalues.max() == pytest.approx(float(values[0]))


def test_a_matrix_whose_split_is_not_known_is_refused_alone(tmp_path):
    for rank, part in enumerate(split(2, by_vocabulary=True)):
        torch.save(
            {**part, "layers.0.attention.wqkv.weight": torch.ones(64, DIM)}, tmp_path / f"consolidated.0{rank}.pth"
        )
    row = next(row for row in tw.audit(tmp_path).rows if "wqkv" in row.name)
    assert row.status == "UNSUPPORTED"
    assert "one rank's part" in row.reason


@pytest.mark.parametrize("by_vocabulary", [True, False])
def test_one_part_alone_is_said_to_be_one(tmp_path, by_vocabulary):
    written(tmp_path, 2, by_vocabulary=by_vocabulary)
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "away")
    for source in (tmp_path, tmp_path / "consolidated.00.pth"):
        with pytest.raises(UnreadableError, match="one rank's part"):
            open_checkpoint(source)
    (tmp_path / "away").rename(tmp_path / "consolidated.01.pth")
    (tmp_path / "consolidated.00.pth").unlink()
    for source in (tmp_path, tmp_path / "consolidated.01.pth"):
        with pytest.raises(UnreadableError, match=r"missing consolidated\.00\.pth"):
            open_checkpoint(source)


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "ds_to_universal"),
        (["layer_00-model_00-model_states.pt", "layer_01-model_00-model_states.pt"], "ds_to_universal"),
        (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], "model_merger"),
        (["model_world_size_2_rank_0.pt"], "model_merger"),
        (["model-rank-0-part-0.safetensors", "model-rank-1-part-0.safetensors"], "vLLM"),
        (["rank0.safetensors", "rank1.safetensors"], "TensorRT"),
        (["pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_rank1.bin"], "FULL_STATE_DICT"),
    ],
)
def test_parts_that_are_not_joined_name_what_joins_them(tmp_path, names, fix):
    for name in names:
        torch.save({"w": torch.ones(4, 4)}, tmp_path / name)
    for source in (tmp_path, tmp_path / names[-1]):
        with pytest.raises(UnreadableError, match=r"rank's part|parts, which cannot be joined") as caught:
            open_checkpoint(source)
        assert fix in str(caught.value.fix)


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "model_world_size_1_rank_0.pt"])
def test_the_only_rank_holds_the_model(tmp_path, name):
    torch.save({"module": {"w": torch.ones(4, 4)}, "optimizer": None}, tmp_path / name)
    torch.save({"x": torch.ones(4)}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for source in (tmp_path, tmp_path / name):
        assert open_checkpoint(source).tensors.keys() == {"w"}


def test_megatrons_folders_of_ranks(tmp_path):
    for rank in (0, 1):
        (tmp_path / f"mp_rank_0{rank}").mkdir()
        torch.save({"model": {"w": torch.ones(4, 4)}}, tmp_path / f"mp_rank_0{rank}" / "model_optim_rng.pt")
    for source in (tmp_path, tmp_path / "mp_rank_00", tmp_path / "mp_rank_01" / "model_optim_rng.pt"):
        with pytest.raises(UnreadableError, match=r"rank.* part") as caught:
            open_checkpoint(source)
        assert "convert.py" in str(caught.value.fix)
    (tmp_path / "mp_rank_01" / "model_optim_rng.pt").unlink()
    (tmp_path / "mp_rank_01").rmdir()
    assert open_checkpoint(tmp_path / "mp_rank_00").tensors.keys() == {"w"}


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_placeholders_of_zero3_are_no_weights(tmp_path, kind):
    path = tmp_path / "model"
    tensors = {"a.weight": torch.empty(0), "b.weight": torch.empty(0), "norm.weight": torch.ones(8)}
    save_file(tensors, path) if kind == "safetensors" else torch.save({"module": tensors}, path)
    with pytest.raises(UnreadableError, match=r"2 of its 3 tensors are empty[\s\S]*zero_to_fp32"):
        open_checkpoint(path)


def test_the_files_of_deepspeeds_experts_are_one_model(tmp_path):
    names = ["mp_rank_00_model_states.pt", *(f"layer_0_expert_{e}_mp_rank_00_model_states.pt" for e in range(2))]
    for name in names:
        torch.save({"module": {"w": torch.ones(4, 4)}}, tmp_path / name)
    torch.save({"optimizer": {}}, tmp_path / "expp_rank_0_mp_rank_00_optim_states.pt")
    for source in (tmp_path, *(tmp_path / name for name in names)):
        with pytest.raises(UnreadableError, match="a DeepSpeed model whose experts lie in 2 files") as caught:
            open_checkpoint(source)
        assert "save its state dict" in str(caught.value.fix)


def test_deepspeeds_universal_checkpoint_is_named_and_its_way_out_works(tmp_path):
    for key in ("fc.weight", "out.weight"):
        (tmp_path / "zero" / key).mkdir(parents=True)
        for part in ("fp32", "exp_avg", "exp_avg_sq"):
            torch.save({"param": torch.ones(4, 4)}, tmp_path / "zero" / key / f"{part}.pt")
    torch.save({"optimizer_state_dict": {}}, tmp_path / "zero" / "optimizer_state.pt")
    torch.save({"universal_checkpoint_info": {}}, tmp_path / "mp_rank_00_model_states.pt")
    for source in (
        tmp_path,
        tmp_path / "zero",
        tmp_path / "zero" / "fc.weight",
        tmp_path / "mp_rank_00_model_states.pt",
    ):
        with pytest.raises(UnreadableError, match="is a universal checkpoint of DeepSpeed") as caught:
            open_checkpoint(source)
        assert "zero/KEY/fp32.pt" in str(caught.value.fix)
    (tmp_path / "out").mkdir()
    files = (tmp_path / "zero").glob("*/fp32.pt")
    torch.save({file.parent.name: torch.load(file)["param"] for file in files}, tmp_path / "out" / "whole.pt")
    assert open_checkpoint(tmp_path / "out" / "whole.pt").tensors.keys() == {"fc.weight", "out.weight"}
