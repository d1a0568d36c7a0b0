"""Names that people bring from papers and other tools: taken where they mean one thing, and answered where not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: What else a metric is called → its name here. WeightWatcher's columns, less those that are the same.
METRICS: Mapping[str, str] = {
    "alpha_hat": "alpha_weighted", "α̂": "alpha_weighted", "α": "alpha", "α_hill": "alpha_hill", "hill": "alpha_hill",
    "d": "ks_distance", "ks": "ks_distance", "sigma": "alpha_sigma", "xmin": "lambda_min", "xmax": "lambda_max",
    "effrank": "effective_rank", "log_frobenius_norm": "log_norm", "traps": "num_traps", "spikes": "num_spikes",
    "bulk_max": "lambda_plus",
}  # fmt: skip
#: What else a number format is called.
FORMATS: Mapping[str, str] = {
    "fp8": "fp8_e4m3", "float8": "fp8_e4m3", "f8": "fp8_e4m3", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2",
    "float16": "fp16", "half": "fp16", "f16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32",
    "f32": "fp32", "float64": "fp64", "double": "fp64", "f64": "fp64",
}  # fmt: skip
_OTHER_GGUF = (
    "of llama.cpp's types these are made here: q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, q4_0, q4_1, q5_0, q5_1, "
    "q8_0; llama-quantize makes the others"
)
_W4A16 = "did you mean int4-g128 (4-bit weights in groups of 128)?"
_VLLM = "vLLM loads what `tailwise apply --packed compressed-tensors` writes; or export to llmcompressor"
#: What a name is asked as (the beginning of its kind) → the name → what to say.
_SAID: Mapping[str, Mapping[str, str]] = {
    "metric": {"entropy": "did you mean matrix_entropy (WeightWatcher's entropy) or singular_entropy?",
               "rank": "did you mean matrix_rank, stable_rank or effective_rank?"},
    "number to rank by": {"entropy": "no entropy is averaged; did you mean effective_rank?"},
    "number format": {"w4a16": _W4A16, "awq": f"awq is an algorithm; {_W4A16}",
                      "gptq": f"gptq is an operator; {_W4A16}"},
    "export format": {"vllm": _VLLM, "sglang": _VLLM, "tgi": _VLLM, "gguf": "did you mean llamacpp?",
                      "llama.cpp": "did you mean llamacpp?", "ollama": "did you mean llamacpp?",
                      "awq": "did you mean llmcompressor?", "gptq": "did you mean gptqmodel?",
                      "autogptq": "did you mean gptqmodel?", "auto-round": "did you mean autoround?"},
    "operator": {"awq": "did you mean gptq? Plans for AWQ are exported with --to llmcompressor",
                 "svd": "did you mean low_rank?", "l1": "did you mean magnitude?",
                 "llm-pruner": "did you mean structured?"},
    "packing": {"vllm": "did you mean compressed-tensors?", "llama.cpp": "did you mean gguf?", "awq":
                "did you mean compressed-tensors?", "gptq": "did you mean compressed-tensors?"},
    "allocator": {"alphapruning": "did you mean alpha?", "alphaquant": "did you mean alpha or alphaq?"},
}  # fmt: skip


def known_name(text: str, known: Iterable[str], others: Mapping[str, str] = METRICS) -> str:
    """`text` where it is known as it stands, else what it is called here, else as it stands.

    >>> known_name("alpha-hat", ["alpha", "alpha_weighted"]), known_name("Alpha", ["alpha"]), known_name("x", ["alpha"])
    ('alpha_weighted', 'alpha', 'x')
    """
    names = set(known)
    if text in names:
        return text
    plain = text.strip().lower().replace("-", "_").replace(" ", "_")
    spelled = {name.lower(): name for name in names}
    return spelled.get(others.get(plain, plain), text)


def said_of(kind: str, name: str) -> str:
    """What to say where somebody asks for `name` as a thing of this kind; "" where there is nothing special to say."""
    plain = name.strip().lower().replace("_", "-") if kind != "number format" else name.strip().lower()
    if kind == "number format" and ("_k" in plain or plain.startswith(("iq", "tq"))):
        return _OTHER_GGUF
    return next((said[plain] for start, said in _SAID.items() if kind.startswith(start) and plain in said), "")
