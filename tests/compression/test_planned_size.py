"""What a model that is stored dequantized would take, packed as its plan says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import plan_for, quantize, saved

from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.planned_size import planned_nbytes
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.candidates import TensorChoice
from tailwise.models.evaluation.quiet import quiet

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    with quiet():
        return saved("llama", tmp_path_factory.mktemp("sizes") / "dense", dtype=torch.bfloat16)


def quantized(dense, tmp_path, name):
    from tailwise.audits.run import audit

    plan = plan_quantize(audit(dense), QuantizeRequest(bits=6.0, formats=(name, "int4-g16"), allocator="alphaq"))
    quantize(plan, dense, tmp_path / "out")
    return plan, tmp_path / "out"


def test_planned_tensors_count_with_their_bits_and_all_others_as_stored(dense, tmp_path):
    plan, folder = quantized(dense, tmp_path, "int8")
    with open_checkpoint(folder) as checkpoint:
        stored, planned = checkpoint.nbytes, {one.tensor for one in plan}
        others = sum(spec.nbytes for name, spec in checkpoint.tensors.items() if name not in planned)
    found = planned_nbytes(folder)
    assert found < stored
    bits = sum(one.n_params * one.number_format.bits_per_weight(*one.shape[-2:]) for one in plan)
    assert found == pytest.approx(others + bits / 8, abs=1)


def test_a_plan_to_prune_and_no_plan_say_nothing_of_bytes(dense, tmp_path):
    apply(plan_for(dense, sparsity=0.5), dense, tmp_path / "pruned")
    assert planned_nbytes(tmp_path / "pruned") is None
    assert planned_nbytes(dense) is None
    assert planned_nbytes("org/name") is None


def test_a_size_in_bytes_is_that_of_the_gguf_file_with_its_tokenizer(tmp_path):
    from tailwise.audits.run import audit
    from tailwise.compression.applying.apply_options import ApplyOptions

    pytest.importorskip("gguf")
    example = Path(__file__).resolve().parents[2] / "examples" / "pycode-8m"
    formats, nbytes = ("q4_0", "q5_0", "q8_0"), 7_000_000
    plan = plan_quantize(
        audit(str(example)),
        QuantizeRequest(
            bytes=nbytes, formats=formats, allocator="ends", choice=TensorChoice(also=("embed", "lm_head"))
        ),
    )
    apply(plan, example, tmp_path / "out", options=ApplyOptions(packed="gguf"))
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert 0.97 * nbytes < file.stat().st_size <= nbytes
