"""Tensor name to role and block: a table of the names that model families use, read top to bottom.

The names are those of transformers, torchvision, timm, the original Llama and Mixtral releases, and GGUF. A
new architecture is an entry in `_TABLE`, not code. `blocks.py` numbers the blocks of a whole checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

ROLES: Mapping[str, str] = {
    "embed": "token (or segment) embedding: one row per token",
    "pos_embed": "position embedding, learned or relative",
    "lm_head": "from the last hidden state to the vocabulary",
    "attn_q": "attention query projection",
    "attn_k": "attention key projection",
    "attn_v": "attention value projection",
    "attn_o": "attention output projection",
    "attn_qkv": "query, key and value in one matrix that could not be told apart",
    "attn_kv": "key and value in one matrix that could not be told apart",
    "attn_q_a": "latent attention (MLA): down-projection of the query",
    "attn_q_b": "latent attention (MLA): up-projection of the query",
    "attn_kv_a": "latent attention (MLA): down-projection of key and value",
    "attn_kv_b": "latent attention (MLA): up-projection of key and value",
    "attn_index": "sparse-attention indexer or attention gate",
    "mlp_gate": "the feed-forward projection that passes through the activation and gates `mlp_up`",
    "mlp_up": "feed-forward projection from the hidden to the inner size",
    "mlp_down": "feed-forward projection from the inner to the hidden size",
    "mlp_gate_up": "gate and up projections in one matrix that could not be told apart",
    "router": "mixture of experts: scores of the experts",
    "expert_gate": "gate projection of one routed expert",
    "expert_up": "up projection of one routed expert",
    "expert_down": "down projection of one routed expert",
    "expert_gate_up": "gate and up projections of one routed expert that could not be told apart",
    "shared_gate": "gate projection of the experts that every token passes",
    "shared_up": "up projection of the experts that every token passes",
    "shared_down": "down projection of the experts that every token passes",
    "shared_gate_up": "gate and up projections of the shared experts that could not be told apart",
    "conv": "convolution kernel",
    "patch_embed": "image patches to hidden states",
    "ssm_in": "state-space or linear-attention input projection",
    "ssm_x": "state-space projection to the input-dependent parameters",
    "ssm_dt": "state-space step size projection",
    "ssm_out": "state-space or linear-attention output projection",
    "ssm_state": "state-space transition parameters (A, D, gates); not a linear map between activations",
    "rwkv_r": "RWKV time mixing: receptance",
    "rwkv_k": "RWKV time mixing: key",
    "rwkv_v": "RWKV time mixing: value",
    "rwkv_g": "RWKV time mixing: gate",
    "rwkv_o": "RWKV time mixing: output",
    "rwkv_ffn_k": "RWKV channel mixing: key (hidden to inner size)",
    "rwkv_ffn_r": "RWKV channel mixing: receptance",
    "rwkv_ffn_v": "RWKV channel mixing: value (inner to hidden size)",
    "rwkv_mix": "RWKV interpolation, decay and low-rank adaptation parameters",
    "rnn_ih": "recurrent network: input to gate",
    "rnn_hh": "recurrent network: hidden state to gate",
    "projector": "between two hidden spaces: modality projectors, embedding factorisations",
    "pooler": "dense layer between the last block and the head (pooler, masked-LM transform)",
    "classifier": "hidden state to classes",
    "norm": "normalisation scale, or running statistics",
    "bias": "bias or additive mask",
    "other": "no entry of the table of names matches",
}


@dataclass(frozen=True)
class RoleMatch:
    """What a tensor does, and the number of the block it sits in as its name has it."""

    role: str
    block: int | None


_ATTN = r"(?:\w*attn\w*|\w*attention\w*|\w*Attention\w*|temporal_block)"
_MLP = r"(?:mlp|ffn|feed_forward|moe|block_sparse_moe|\w*MoE\w*|ff)"

#: (pattern of the end of the stem, role, model types it is limited to). The first match wins. The stem is the
#: name without `.weight`; a pattern starts at a dot or at the beginning.
_TABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # Recurrent networks (torch.nn), RWKV (transformers, the original releases, GGUF)
    (r"weight_ih(_l\d+)?(_reverse)?", "rnn_ih", ()),
    (r"weight_hh(_l\d+)?(_reverse)?|weight_hr_l\d+(_reverse)?", "rnn_hh", ()),
    (r"blocks\.\d+\.(att|attention)\.receptance|blk\.\d+\.time_mix_receptance", "rwkv_r", ()),
    (r"blocks\.\d+\.(att|attention)\.key|blk\.\d+\.time_mix_key", "rwkv_k", ()),
    (r"blocks\.\d+\.(att|attention)\.value|blk\.\d+\.time_mix_value", "rwkv_v", ()),
    (r"blocks\.\d+\.(att|attention)\.gate|blk\.\d+\.time_mix_gate", "rwkv_g", ()),
    (r"blocks\.\d+\.(att|attention)\.output|blk\.\d+\.time_mix_output", "rwkv_o", ()),
    (r"blocks\.\d+\.(ffn|feed_forward)\.key|blk\.\d+\.channel_mix_key", "rwkv_ffn_k", ()),
    (r"blocks\.\d+\.(ffn|feed_forward)\.receptance|blk\.\d+\.channel_mix_receptance", "rwkv_ffn_r", ()),
    (r"blocks\.\d+\.(ffn|feed_forward)\.value|blk\.\d+\.channel_mix_value", "rwkv_ffn_v", ()),
    (r"time_(mix|decay|first|maa|faaaa)\w*|channel_mix_\w+", "rwkv_mix", ()),
    (r"blocks\.\d+\.att\.(x_[rwkvag]|[wavg][0-2]|[rk]_[ka])|blocks\.\d+\.ffn\.x_k", "rwkv_mix", ()),
    (r"head", "lm_head", ("rwkv", "rwkv5", "rwkv6", "rwkv7")),
    # Positions, then tokens: `embeddings` alone ends many names
    (r"wpe|embed_positions|\w*pos(ition(al)?)?_embed(ding|dings)?|position_embd|pos_embd", "pos_embed", ()),
    (r"relative_attention_bias|relative_position_bias_table|rel_(pos|embeddings)\w*|pos_bias_[uv]|attn_rel_b",
     "pos_embed", ()),
    (r"cls_token|mask_token|dist(illation)?_token|register_tokens|class_(embed(ding)?|embd)", "embed", ()),
    (r"embed_tokens\w*|wte|word_embeddings?|tok_embeddings|embed_in|token_embd|token_embedding|token_types",
     "embed", ()),
    (r"token_type_embeddings?|shared|embeddings?|embed|emb|embedding_table", "embed", ()),
    # Heads
    (r"\w*lm_head|embed_out|vocab_projector|(lm_head|predictions|cls)\.decoder|proj_out|^decoder|^output",
     "lm_head", ()),
    (r"pooler(\.dense)?|predictions\.transform\.dense|vocab_transform|(lm_head|head|\w*predictions)\.dense",
     "pooler", ()),
    (r"pre_classifier|classifier\.dense|pre_head", "pooler", ()),
    (r"\w*classifier(\.\d+|\.out_proj|\.linear)?|score|^fc|^head|heads\.head|head\.fc|qa_outputs",
     "classifier", ()),
    (r"seq_relationship|cls", "classifier", ()),
    (r"project_(in|out)|\w*_projection(\.\d+|\.projection)?|embeddings_project|embedding_hidden_mapping_in",
     "projector", ()),
    (r"\w*projector\.[\w.]+|merger\.[\w.]+|connector\.[\w.]+|mm\.[\w.]+", "projector", ()),
    # Patches and convolutions that have a name of their own
    (r"patch_embed(ding|dings)?(\.proj(ection)?)?|conv_proj|patch_embd", "patch_embed", ()),
    (r"(?!pw)\w*conv\w*|\w*conv\w*\.parametrizations\.weight\.original\d", "conv", ()),
    (r"downsample\.\d|shortcut\.\d", "conv", ()),
    # State-space and linear attention
    (r"(mixer|mamba\w*|linear_attn|ssm)\.in_proj\w*|ssm_in|temporal_block\.linear_[xy]", "ssm_in", ()),
    (r"(mixer|mamba\w*|linear_attn|ssm)\.out_proj|ssm_out|temporal_block\.linear_out", "ssm_out", ()),
    (r"x_proj|ssm_x|rg_lru\.\w+", "ssm_x", ()),
    (r"dt_proj|ssm_dt", "ssm_dt", ()),
    (r"A_log|A|D|ssm_[ad]", "ssm_state", ()),
    # Mixture of experts: scores
    (rf"{_MLP}\.(gate|router)(\.\w+)?|router(\.layer|\.classifier)?", "router", ()),
    (r"ffn_gate_inp\w*|shared_expert_gate", "router", ()),
    # Attention
    (r"q_a_proj|attn_q_a|wq_a", "attn_q_a", ()),
    (r"q_b_proj|attn_q_b|wq_b", "attn_q_b", ()),
    (r"kv_a_proj_with_mqa|kv_a_proj|attn_kv_a_mqa|wkv_a", "attn_kv_a", ()),
    (r"kv_b_proj|attn_(kv|k|v)_b|wkv_b", "attn_kv_b", ()),
    (rf"indexer\.\w+|{_ATTN}\.(g_proj|gate_proj|gate)", "attn_index", ()),
    (r"qkv_proj|query_key_value|[wW]qkv|qkv|attn_qkv|in_proj_weight|c_attn|to_qkv", "attn_qkv", ()),
    (r"kv_proj|to_kv|key_value", "attn_kv", ()),
    (r"q_proj|query|query_proj|q_lin|q_attn|wq|attn_q|cross_attn_q|to_q|\w*Attention\.q|q", "attn_q", ()),
    (r"k_proj|key|key_proj|k_lin|wk|attn_k|cross_attn_k|to_k|\w*Attention\.k|k", "attn_k", ()),
    (r"v_proj|value|value_proj|v_lin|wv|attn_v|cross_attn_v|to_v|\w*Attention\.v|v", "attn_v", ()),
    (rf"{_ATTN}\.(output\.dense|dense|c_proj|out_proj|proj|wo|Wo|o|to_out\.0|output)", "attn_o", ()),
    (r"o_proj|out_lin|attn_out(put)?|cross_attn_o|to_out\.0|(self|cross|encoder)_attn\.out_proj|attn\.\w+\.out_proj",
     "attn_o", ()),
    (r"attention\.out_proj|attn\.out_proj|out_proj", "attn_o", ()),
    # Feed-forward. Of two factors that are multiplied, the one that passes the activation is the gate.
    (r"mlp\.w2", "mlp_gate", ("qwen",)),
    (r"mlp\.w1", "mlp_up", ("qwen",)),
    (r"gate_up_proj|input_linear|mlp\.Wi|gate_up|w13", "mlp_gate_up", ()),
    (r"output_linear", "mlp_down", ()),
    (r"gate_proj|ffn_gate|ffn_gate_(exps|shexp)|ffn_gate\.\d+|wi_0|w1|gate", "mlp_gate", ()),
    (r"up_proj|ffn_up|ffn_up_(exps|shexp)|ffn_up\.\d+|wi|wi_1|w3|v1", "mlp_up", ()),
    (r"fc1|c_fc|dense_h_to_4h|fc_in|lin1|intermediate\.dense|intermediate_dense|pwconv1|ffn|mlp\.0",
     "mlp_up", ()),
    (r"linear1|linear_fc1", "mlp_up", ()),
    (r"down_proj|ffn_down|ffn_down_(exps|shexp)|ffn_down\.\d+|wo|w2|mlp\.Wo|c_proj|mlp\.[23]",
     "mlp_down", ()),
    (r"fc2|dense_4h_to_h|fc_out|lin2|output\.dense|output_dense|pwconv2|linear2|linear_fc2|ffn_output",
     "mlp_down", ()),
    (r"downsample\.reduction|\w*project\w*|proj", "projector", ()),
)  # fmt: skip

_NORM = re.compile(r"(?:^|[._])(?:\w*norm\w*|\w*Norm\w*|ln(?:_\w+|\d+)?|bn\d*|running_(?:mean|var))$")
_BIAS = re.compile(r"(?:^|[._])bias(?:_\w+)?$")
_EXPERT = re.compile(r"(?:^|\.)experts?\.|_exps$|ffn_(?:gate|up|down)\.\d+$|block_sparse_moe\.(?:in|out)put_linear$")
_SHARED = re.compile(r"(?:^|\.)shared_(?:experts?|mlp)\.|_shexp$")
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
_INNER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
#: Roles outside the blocks even where their names have numbers (`classifier.1`).
NO_BLOCK = frozenset({"classifier", "lm_head", "pooler", "projector"})


def classify(name: str, ndim: int, config: Mapping[str, Any]) -> RoleMatch:
    """Role of the tensor `name` with `ndim` axes, and the first number in its name.

    `config` is the model's config.json: its `model_type` decides between families that use one name for two
    things. Names without an entry get the role `conv` (three axes or more) or `other`.
    """
    stem = name.removesuffix(".weight")
    # Blocks and experts repeat the same names: each is looked up once.
    role = _role(_INNER_NUMBER.sub("0", stem), min(ndim, 3), str(config.get("model_type", "")))
    number = None if role in NO_BLOCK else _NUMBER.search(stem)
    return RoleMatch(role, int(number[1]) if number else None)


@lru_cache(maxsize=4096)
def _role(stem: str, ndim: int, model_type: str) -> str:
    if _BIAS.search(stem) and "relative" not in stem:
        return "bias"
    if _NORM.search(stem):
        return "norm"
    role = _look_up(stem, model_type)
    if role is None:
        return "conv" if ndim > 2 else "other"
    if role.startswith("mlp_"):
        if _SHARED.search(stem):
            return role.replace("mlp_", "shared_")
        if _EXPERT.search(stem):
            return role.replace("mlp_", "expert_")
    return role


def _look_up(stem: str, model_type: str) -> str | None:
    for pattern, role, types in _compiled():
        if (not types or model_type in types) and pattern.search(stem):
            return role
    return None


@lru_cache(maxsize=1)
def _compiled() -> tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...]:
    return tuple((re.compile(rf"(?:^|\.)(?:{pattern})$"), role, types) for pattern, role, types in _TABLE)
