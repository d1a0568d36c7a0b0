"""Files that are written, loaded and run by llama.cpp itself: where the package xllamacpp is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from tailwise.audits.run import audit
from tailwise.compression.applying.apply import ApplyOptions, apply
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.candidates import TensorChoice
from tailwise.core.storage import json_of

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp", reason="llama.cpp is not at hand (pip install 'tailwise[ggml]')")

#: Its log-probabilities after some tokens, printed as JSON; a process of its own, since its server does not end cleanly
#: beside pytest's capture.
_ASK = """
import json, sys
import xllamacpp as llama
given = json.loads(sys.stdin.read())
params = llama.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = given["path"], 512, 1, 1
server = llama.Server(params)
found = []
for ids in given["prompts"]:
    asked = {"prompt": ids, "n_predict": 1, "n_probs": 20, "temperature": 0.0, "cache_prompt": False}
    answer = server.handle_completions(asked)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found.append({str(item["id"]): item["logprob"] for item in top})
print("FOUND" + json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def half(pycode, tmp_path_factory):
    """pycode-8m as a GGUF file in bfloat16."""
    out = tmp_path_factory.mktemp("half") / "out"
    plan = plan_quantize(audit(pycode), QuantizeRequest(formats=("bf16",)))
    apply(plan, pycode, out, options=ApplyOptions(packed="gguf"))
    return out / "model.gguf"


def asked(path, prompts):
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ASK],
        input=json.dumps({"path": str(path), "prompts": prompts}), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json_of(done.stdout.partition("FOUND")[2].splitlines()[0])


@pytest.mark.parametrize(
    "formats",
    [("q2_k",), ("q3_k",), ("q4_k",), ("q5_k",), ("q6_k",), ("iq4_nl",), ("iq4_xs",), ("q3_k", "q4_k", "q6_k")],
    ids="-".join,
)
def test_it_says_what_transformers_says_of_the_file(half, pycode, tmp_path, formats):
    bits = {"bits": 4.7} if len(formats) > 1 else {}
    request = QuantizeRequest(formats=formats, allocator="depth" if bits else "uniform",
                              choice=TensorChoice(also=("embed", "lm_head")), **bits)  # fmt: skip
    apply(plan_quantize(audit(half), request), half, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(pycode)
    ids = tokenizer((pycode / "heldout.txt").read_text(encoding="utf-8")[:4000])["input_ids"]
    prompts = [ids[:20], ids[:60], ids[:200]]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", dtype="float32"
    ).eval()
    for prompt, theirs in zip(prompts, asked(tmp_path / "out" / "model.gguf", prompts), strict=True):
        with torch.no_grad():
            ours = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        found = np.array(list(theirs.values()))
        assert len(found) == 20
        assert np.isfinite(found).all()
        expected = np.array([float(ours[int(token)]) for token in theirs])
        assert np.abs(found - expected).max() < 0.2  # it rounds activations to 8 bits too, and its cache to half
