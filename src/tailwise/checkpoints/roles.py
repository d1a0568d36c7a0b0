"""Tensor name to role: a table of the names that model families use, read top to bottom.

The names are those of transformers, diffusers, torchvision, timm, GGUF, Megatron, LitGPT, torchtune and the
original releases of Llama, Whisper, CLIP, Stable Diffusion and Flux. A new architecture is an entry in `_TABLE`,
not code. `blocks.py` numbers the blocks of a whole checkpoint, `order.py` puts roles in the order of reading.
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
    "patch_embed": "patches of an image, video or sound to hidden states",
    "time_embed": "diffusion: time step (or noise level, guidance) to the conditioning vector",
    "cond_embed": "diffusion: class, pooled text or size to the conditioning vector",
    "codebook": "vector quantisation: one row per code",
    "modulation": "adaptive normalisation (adaLN, FiLM): conditioning vector to shifts, scales and gates",
    "conv": "convolution kernel",
    "squeeze_excite": "squeeze and excitation: from pooled channels to a gate per channel",
    "attn_q": "attention query projection",
    "attn_k": "attention key projection",
    "attn_v": "attention value projection",
    "attn_qkv": "query, key and value in one matrix that could not be told apart",
    "attn_kv": "key and value in one matrix that could not be told apart",
    "attn_q_a": "latent attention (MLA): down-projection of the query",
    "attn_q_b": "latent attention (MLA): up-projection of the query",
    "attn_kv_a": "latent attention (MLA): down-projection of key and value",
    "attn_kv_b": "latent attention (MLA): up-projection of key and value",
    "attn_index": "where attention looks and how much passes: sparse-attention indexers, deformable offsets, gates",
    "attn_pos": "attention: projection of relative positions",
    "attn_o": "attention output projection",
    "attn_mlp_in": "parallel blocks: query, key, value and feed-forward up-projection in one matrix",
    "attn_mlp_out": "parallel blocks: attention output and feed-forward down-projection in one matrix",
    "ssm_in": "state-space, linear-attention or short-convolution input projection",
    "ssm_x": "state-space projection to the input-dependent parameters",
    "ssm_dt": "state-space step size projection",
    "ssm_state": "state-space transition parameters (A, D, gates); not a linear map between activations",
    "ssm_out": "state-space, linear-attention or short-convolution output projection",
    "rwkv_r": "RWKV time mixing: receptance",
    "rwkv_k": "RWKV time mixing: key",
    "rwkv_v": "RWKV time mixing: value",
    "rwkv_g": "RWKV time mixing: gate",
    "rwkv_mix": "RWKV interpolation, decay and low-rank adaptation parameters",
    "rwkv_o": "RWKV time mixing: output",
    "rwkv_ffn_k": "RWKV channel mixing: key (hidden to inner size)",
    "rwkv_ffn_r": "RWKV channel mixing: receptance",
    "rwkv_ffn_v": "RWKV channel mixing: value (inner to hidden size)",
    "rnn_ih": "recurrent network: input to gate",
    "rnn_hh": "recurrent network: hidden state to gate",
    "router": "mixture of experts: scores of the experts",
    "mlp_gate": "the feed-forward projection that passes through the activation and gates `mlp_up`",
    "mlp_up": "feed-forward projection from the hidden to the inner size",
    "mlp_gate_up": "gate and up projections in one matrix that could not be told apart",
    "mlp_down": "feed-forward projection from the inner to the hidden size",
    "shared_gate": "gate projection of the experts that every token passes",
    "shared_up": "up projection of the experts that every token passes",
    "shared_gate_up": "gate and up projections of the shared experts that could not be told apart",
    "shared_down": "down projection of the experts that every token passes",
    "expert_gate": "gate projection of one routed expert",
    "expert_up": "up projection of one routed expert",
    "expert_gate_up": "gate and up projections of one routed expert that could not be told apart",
    "expert_down": "down projection of one routed expert",
    "residual_mix": "mixes residual streams or adds to them: AltUp, LAuReL, hyper-connections, inputs per layer",
    "projector": "between two hidden spaces: modality projectors, embedding factorisations, a module's way in and out",
    "pooler": "dense layer between the last block and the head (pooler, masked-LM transform)",
    "classifier": "hidden state to classes",
    "regressor": "hidden state to boxes, masks, depths or other values",
    "patch_out": "hidden states to patches of an image, video or sound: the last layer of diffusion transformers",
    "lm_head": "from the last hidden state to the vocabulary",
    "norm": "normalisation scale, or running statistics",
    "bias": "bias or additive mask",
    "other": "no entry of the table of names matches",
}


@dataclass(frozen=True)
class RoleMatch:
    """What a tensor does, and the number of the block it sits in as its name has it."""

    role: str
    block: int | None


_ATTN = r"(?:\w*attn\w*|\w*attention\w*|\w*Attention\w*|\w*_attend\w*|att|temporal_block|fused_attn)"
#: A component inside attention that says nothing.
_IN = r"(?:\.(?:self|attention|attn|att|core|module|fn|processor|0))?"
_MLP = (
    r"(?:\w*mlps?\w*|ffn\w*|ffw_\w+|\w*_ffn|\w*feed_?forward\w*|ffs?\d?|ff_\w+|\w+_ff|\w*FeedForward\w*|"
    r"\w*DenseReluDense\w*|shared_expert|moe|\w*_moe|block_sparse_moe|\w*MoE\w*|adapter_modules\.\w+|"
    r"channel_mixer|transition)(?:\.(?:net|ffn?|fn|layers|dense|mlp|0))*"
)
_TIME = (
    r"(?:\w*_)?(?:(?:time_?step|timesteps?|time|noise|noise_level|sigma|guidance|fps|delta_t)_?(?:text_)?"
    r"(?:embed|emb|mlp|proj)\w*|[tr]_(?:embed|emb)\w*|(?:time|timestep|guidance)_in)"
)
_WHISPER = ("whisper", "moonshine", "moonshine_streaming", "canary", "cohere_asr", "speech_to_text")

#: (pattern of the end of the stem, role, model types it is limited to). The first match wins. The stem is the
#: name without `.weight`; a pattern starts at a dot or at the beginning.
_TABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # Recurrent networks (torch.nn, flax), RWKV (transformers, the original releases, GGUF)
    (r"weight_ih(_l\d+)?(_reverse)?", "rnn_ih", ()),
    (r"weight_hh(_l\d+)?(_reverse)?|weight_hr_l\d+(_reverse)?|_?recurrent_kernel_?", "rnn_hh", ()),
    (r"blocks\.\d+\.(att|attention)\.receptance|blk\.\d+\.time_mix_receptance", "rwkv_r", ()),
    (r"blocks\.\d+\.(att|attention)\.key|blk\.\d+\.time_mix_key", "rwkv_k", ("", "rwkv", "rwkv5", "rwkv6", "rwkv7")),
    (r"blocks\.\d+\.(att|attention)\.value|blk\.\d+\.time_mix_value",
     "rwkv_v", ("", "rwkv", "rwkv5", "rwkv6", "rwkv7")),
    (r"blk\.\d+\.time_mix_key", "rwkv_k", ()),
    (r"blk\.\d+\.time_mix_value", "rwkv_v", ()),
    (r"blocks\.\d+\.(att|attention)\.gate|blk\.\d+\.time_mix_gate", "rwkv_g", ()),
    (r"blocks\.\d+\.(att|attention)\.output|blk\.\d+\.time_mix_output", "rwkv_o", ()),
    (r"blocks\.\d+\.(ffn|feed_forward)\.key|blk\.\d+\.channel_mix_key", "rwkv_ffn_k", ()),
    (r"blocks\.\d+\.(ffn|feed_forward)\.receptance|blk\.\d+\.channel_mix_receptance", "rwkv_ffn_r", ()),
    (r"blocks\.\d+\.(ffn|feed_forward)\.value|blk\.\d+\.channel_mix_value", "rwkv_ffn_v", ()),
    (r"time_(mix|decay|first|maa|faaaa)\w*|channel_mix_\w+", "rwkv_mix", ()),
    (r"blocks\.\d+\.att\.(x_[rwkvag]|[wavg][0-2]|[rk]_[ka])|blocks\.\d+\.ffn\.x_k", "rwkv_mix", ()),
    (r"head", "lm_head", ("rwkv", "rwkv5", "rwkv6", "rwkv7")),
    # Diffusion: what conditions, and how. The original names, then those of diffusers.
    (r"embeddings\.time_embeddings", "pos_embed", ()),
    (r"time_emb_proj|time_projection\.\d|condition_embedder\.time_proj", "modulation", ()),
    (rf"(time_text_embed|{_TIME})(\.(?!\w*(text|caption|image|style|size)_?\w*embed)\w+)+|map_layer\d|map_noise|"
     r"distilled_guidance_layer(\.\w+)+|(flow_head|diffusion_head|time\w*)\.cond_proj", "time_embed", ()),
    (r"(label_emb|vector_in|pooled_\w*(embed|proj)\w*|add_(time_|text_)?embed\w*|(time_text_embed|"
     r"aug_emb\w*)\.\w*text\w*|aug_emb\w*|y_embedder|class_embed(ding|der)?s?)(\.\w+)*\.(linear_\w+|in_layer|"
     r"out_layer|\d|mlp\.\d)", "cond_embed", ()),
    (r"(time_text_embed|condition_embedder|\w*time\w*embed\w*)\.\w*(text|style|size|pooled)\w*embed\w*(\.\w+)*|"
     r"\w*pooled_text_embed\w*(\.\w+)*|(size|resolution|aspect_ratio|nframes|area|style|micro_cond\w*)_(embedder|"
     r"embedding|cond\w*)(\.\w+)+|add_embedding(\.\w+)+|extra_embedder(\.\w+)+", "cond_embed", ()),
    (r"modulation\.(projection_\w+|[fh]|focal_layers\.\d+\.\d+|proj)", "projector", ()),
    (r"quantizers?\.\d+\.(in|out)_proj", "projector", ()),
    (r"\w*(adaln|ada_ln|adaLN|AdaLN|adanorm|ada_norm|adaptive_norm|modulat(ion|or)|film)\w*(\.\w+)*",
     "modulation", ()),
    (r"\w*(scale_shift|_gate)\.linear",
     "modulation", ("LTX2VideoTransformer3DModel", "SanaWMLTX2RefinerTransformer3DModel")),
    (r"\w*norm\w*\.(\w*linear\w*|lin|proj\w*|fc|emb\w*\.linear|modulation\w*(\.\d)?|context_mlp\.\d|to_\w*(gamma|"
     r"beta)\w*(\.\d)?|time_emb\w*\.\d)", "modulation", ()),
    (r"((img|txt|text|image|context|c|x)_)?mod(\.(lin|linear|\d))?|\w*scale_shift_table\w*|\w*modulate_table|"
     r"mapper(_\w+)?|scale_output\.\d", "modulation", ()),
    (r"(emb|embed)_layers\.\d|temb_proj|t_block\.\d", "modulation", ()),
    # Squeeze and excitation (torchvision, timm, transformers)
    (r"(\w*_)?(se|se_module|squeeze_excitation|squeeze_excite|ca)(\.(mlp_\w+|attention))?\.(fc\d?|conv_reduce|"
     r"conv_expand|reduce|expand|squeeze|excite|excitation|mlp\.\d|\d)(\.\w+)*", "squeeze_excite", ()),
    (r"attn(_last)?\.(mlp_\w+\.)?fc[12]|block\.\d+\.fc[12]|layers\.0\.0\.fc[12]", "squeeze_excite", ()),
    # Positions, then tokens: `embeddings` alone ends many names
    (r"^(text|txt|image)_embedding\.\d", "projector", ()),
    (r"wpe|embed_positions|positions_embed|\w*pos(ition(al)?)?_embed(ding|dings|der)?(_table|_window|_\w?[xyhwtd])?|position_embd|"
     r"pos_embd\w*", "pos_embed", ()),
    (r"\w*pos(ition(al)?)?_?emb\w*(\.(weight|pe|pos_table|embed\w*|row_embed\w*|column_embed\w*|\w*embeddings?))?",
     "pos_embed", ()),
    (r"\w*relative_attention_bias(\.\w+)*|\w*relative_position_bias(_table|\.relative_attention_bias)?|rel_(pos|"
     r"embeddings)\w*|\w*pos_bias_[uv]|attn_rel_b|cross_attn_rel_b|attn_rel_pos_emb|attention_biases?|pos_[hw]|"
     r"rel_[hw]|\w*position_bias(_\w+)?", "pos_embed", ()),
    (r"distance_embedding|(height|width)_rel|r_kernel|gru_rel_pos_linear|box_rpb_embed_\w(\.\w+)*|(row|column|"
     r"height|width|[xyhwt]_position)_(position_)?embed(der|ding|dings)?(_\w+)?|temporal_embed\w*|level_embed\w*|"
     r"(lat|lon)_embed\w*|frame_embed\w*", "pos_embed", ()),
    (r"linear_pos|relative_k_proj|relative_key_proj|pos_proj|r_net|r_proj|(\w*attn\w*|self)\.r|attn_k_rel|pos_(key|"
     r"query)_proj|\w*cpb_mlp\.\d|\w*position_bias_mlp\.\d|relative_pos_embeddings|relative_position_bias\.\w+",
     "attn_pos", ()),
    (r"cls_token|mask_token|dist(illation)?_token|\w*register_tokens?|class_(embedding|embd)|masked_spec_embed",
     "embed", ()),
    (r"\w*embed_tokens\w*(\.\d+)?|wte|\w*word_embeddings?|\w*tok_embeddings|embed_in|\w*token_embd\w*|"
     r"\w*token_embeddings?(\.\w+)?|token_types", "embed", ()),
    (r"\w*(token_type|char|entity|bbox|speaker|language|lang|type|segment|task|token|vocab|visual|text|audio|code|"
     r"input|embed)_embed(ding|dings|s)?(_\d+)?(\.\d+)?|shared|embedding_table", "embed", ()),
    (r"(quantizers?\w*(\.\w+)*|quantise\w*(\.\w+)*|vq\w*(\.\w+)*|quantize\w*(\.\w+)*|"
     r"layers\.0)\.(\w*codebooks?(\.\d+)?(\.embed\w*)?|embed(ding)?|embed_avg)|codebooks?(\.\d+)?|codevectors|"
     r"\w*codebook\.embed(ding)?", "codebook", ()),
    (r"queries_embedder|query_(embed|feat|tokens?|position_embed\w*)|(?!linear_|rnn_)\w*_tokens?|^query|"
     r"\w*point_embed(\.\d)?|\w*mask_embed|reference_point_embed|(label|cls|denoising_class|no_mem\w*|no_memory\w*|"
     r"padding|not_a_point)_embed(ding)?|\w*(latents?|_queries|probe)|resampler\.query|^a\.proj_query|seg_embed|"
     r"xpath_\w+_embeddings\.\d+|unit_embedding|(image|audio|view)\w*_(newline|begin|end|sep\w*)|[be]o[aiv]",
     "embed", ()),
    (r"embed_(states?|actions?|returns?|rewards?)", "projector", ()),
    (r"embeddings?|embed|emb|\w*embed_(table|bank)|(?!patch_)\w*_embeddings(_\w+)?|tokens_embed|embed_(global|timesteps?)|freq_emb|"
     r"style_embedder|input_embeds_layer|^transformer\.w", "embed", ()),
    # Heads
    (r"proj_out", "lm_head", _WHISPER),
    (r"(horizon_ff_layer|output_projection_\w+)\.\w+", "regressor", ()),
    (r"(score|qa_outputs)\.out_proj", "classifier", ()),
    (r"(score|qa_outputs|lm_head)\.dense", "pooler", ()),
    (r"\w*lm_heads?(\.\d+|\.out_proj)?|embed_out|vocab_projector|(lm_head|predictions|cls)\.decoder|^decoder|"
     r"^output|(?<!ff_layer\.)output_layer|shared_head\.head|shared_head_head|decoder_output|audio_head|codec_head|"
     r"codebooks?_head|(enc_)?ctc_out|embd_to_logits|logits_(dense|proj)|joint\.head|ctc_head|encoder\.out|"
     r"eos_head|output_projection|lm_logits|(lm_head|codebook_\w*head)\.\d+", "lm_head", ()),
    (r"^head\.head|head\.out", "patch_out", ("", "WanModel", "vocos")),
    (r"pooler(\.dense|\.\w*proj\w*)?|predictions\.transform\.dense|vocab_transform|(lm_head|head|"
     r"\w*predictions)\.dense|dense_[23]|sequence_summary\.summary", "pooler", ()),
    (r"pre_classifier|(classifier|\w*_head)\.dense|pre_head|pre_logits(\.fc)?|enc_output(\.\d)?|"
     r"classifier\.dense_out", "pooler", ()),
    (r"(\w*(iou|bbox|box|mask|depth|score|presence|obj|point|dist|pos|energy|regress|value|duration|pitch|offset|"
     r"angle|keypoint)\w*_(head|predictor|embed|embedder|mlp|decoder|regression)|\w*hypernetworks_mlps|bbox_embed|"
     r"object_pointer_proj|mask_(feature|embed)\w*|dec_bbox\w*|reg_conf|lqe_layers|reg_head|"
     r"line_\w+)(\.\d+)?\.(layers\.\d+|layer\d|proj_(in|out)|fc\d|reg_conf\.layers\.\d|dense\w*|linear\w*|"
     r"\w+\.layers\.\d+|\d+|mlp\.\d)", "regressor", ()),
    (r"\w*(bbox|box|mask|depth|keypoint|iou)_(predictor|head|pred|embed|logits)(\.\d+)?|reference_points?(\.\w+)*|"
     r"\w*(start|end|span)_logits", "regressor", ()),
    (r"\w*class(ifier|ification_head|_labels_classifier|_predictor|_embed)?(?<=r|d)(\.\d+|\.out_proj|\.linear|"
     r"\.\w*proj|\.(low|high)_classifier|\.modules_0|\.\w*classifier)*|score|^fc|^heads?(\.\d+)?|heads\.head|"
     r"head\.(fc|l|head|linear)|qa_outputs|\w*score_head|enc_score\w*|class_logits|cls_(score|logits|head)|"
     r"head_dist|objective", "classifier", ()),
    (r"seq_relationship|cls(\.output)?|\w*class_head\.(dense0|logit_\w+)|dense_prediction|decoder\.head|"
     r"(text_model|vision_model)\.head", "classifier", ()),
    (r"(final_layer|last_layer|final|unpatchify\w*)\.(linear\w*|proj|out\w*)|^proj_out(_\d)?|decoder_pred|feat_out|"
     r"(decoder|prediction)_head\.\w*(pred|proj)\w*|to_pixels?|patch_unembed\w*|unembed\w*|audio_proj_out|"
     r"code2wav_dit_model\.proj_out", "patch_out", ()),
    # Residual streams beside the main one
    (r"altup\w*(\.\w+)*|\w*laurel\w*(\.\w+)*|per_layer_(input_gate|projection|model_projection|model_proj)|"
     r"inp_gate|\w*hyper_?connection\w*(\.\w+)*|(attn_|ffn_|mlp_)?hc(_\w+)?(\.\w+)*|"
     r"controlnet_(single_)?blocks\.\d+", "residual_mix", ()),
    # Between spaces
    (r"project_(in|out)|\w*_projection(\.\d+|\.projection|\.linear\w*|\.dense)?|bottleneck\.\w+(\.dense)?|"
     r"layers\.\d+\.linear|message_fc|embeddings_project|embedding_hidden_mapping_in", "projector", ()),
    (r"\w*projector\.[\w.]+|merger\w*\.[\w.]+|connector\.[\w.]+|mm\.[\w.]+|\w*merger(_list)?\.[\w.]+",
     "projector", ()),
    (r"text_projection|visual_projection|(\w*_)?(context|cap|caption|txt|text|y|clip|image|prompt)_(embedder(_\d)?|"
     r"embeddings?|embeds?|in|proj|refiner)(\.\w+)*|^img_emb(\.\w+)*|mtp\.fc|encoder_hid_proj(\.\w+)*|"
     r"^visual\.proj|eh_proj|post_proj|proj_linear|ffn_latent_(up|down)|enc_ctc_out_mid|subsampling\.\w+|"
     r"feature_extractor|encoder\.out_mid|fc_encoder|decoder_embed|input_ff_layer\.\w+|kv_mapper\.\d|"
     r"to_local_embed\.\d|channelwise\.\d|aligner\.\w+|pre_encode\.out", "projector", ()),
    # Patches and convolutions that have a name of their own
    (r"\w*patch_embed(ding|dings|der)?s?(\.\d+)*(\.(patch_embed\w*|proj\w*|conv\w*|linear\w*|reduction\d?|fc\d?|"
     r"mlp\.\d|embedding\w*|patch_embedding|dense|input_proj))*|conv_proj|patch_embd(_\w+)?|patchify\w*|"
     r"to_patch_\w+(\.\d+)?|pos_embed\.proj|(x|img|latents?|noise)_embedder(\.\w+)*|^(x_|img_|hidden_)?in(_proj)?|"
     r"^proj_in|^patch_proj|^patch_embed\w*", "patch_embed", ()),
    (r"(conv|shortconv|short_conv)\.in_proj|lconv1d\.linear_start", "ssm_in", ()),
    (r"(conv|shortconv|short_conv)\.out_proj|lconv1d\.linear_end", "ssm_out", ()),
    (r"(?!pw|\w*attn_layer)\w*conv\w*|\w*Conv\w*", "conv", ()),
    (r"dw|downsample\.\d|shortcut\.\d|features\.0\.0\.block\.\d|features\.\d\.0\.block\.\d|tdnn\.\d+(\.kernel)?|"
     r"(\w*conv\w*|sconv)\.(static_weight|\w*depthwise|\w*pointwise)|ups(ampler)?\.\d+|convs?\.\d+|\w*conv\w*\.\d+",
     "conv", ()),
    # State-space and linear attention
    (r"(mixer|mamba\w*|linear_attn|ssm|mlstm_layer|xlstm)\.in_proj_(a|b|ba)|ssm_(ba|alpha|beta|f_[ab])|"
     r"(linear_attn|kda|forget_gate|self_attn|attention)\.(f_a_proj|f_b_proj|a_proj|b_proj|f_proj)|"
     r"[fi]gate(_preact)?|(\w*attn|ssm|mixer)\.(beta|alpha|gk)_proj(\.\d)?", "ssm_x", ()),
    (r"(mixer|mamba\w*|linear_attn|ssm)\.in_proj\w*|ssm_in|temporal_block\.linear_[xy]|xlstm\.proj_up", "ssm_in", ()),
    (r"encoder\.layers\.\d+\.mixer\.out_proj", "attn_o", ()),
    (r"(mixer|mamba\w*|linear_attn|ssm)\.out_proj|ssm_out|temporal_block\.linear_out|xlstm\.proj_down",
     "ssm_out", ()),
    (r"x_proj|ssm_x|rg_lru\.\w+|bcdt_proj", "ssm_x", ()),
    (r"dt_proj|ssm_dt", "ssm_dt", ()),
    (r"A_logs?|A|D|ssm_[ad]", "ssm_state", ()),
    # Mixture of experts: scores
    (rf"{_MLP}\.(gate|router|wg)(\.(?!e_score|moe_statics)\w+)?|\w*router(\.(layer|classifier|proj|gate|linear|"
     r"weight|router\w*|\w*router))?|gate\.wg|mixer\.gate", "router", ()),
    (r"ffn_gate_inp\w*|\w*shared_expert_gate", "router", ()),
    # Attention. Parallel blocks first: one matrix for attention and feed-forward.
    (r"single_blocks\.\d+\.linear1|to_qkv_mlp_proj|fused_attn_ff_proj|(single|parallel)\w*\.\d+\.to_qkv_mlp\w*",
     "attn_mlp_in", ()),
    (r"single_blocks\.\d+\.linear2|single_transformer_blocks\.\d+\.(proj_out|attn\.to_out)", "attn_mlp_out", ()),
    (r"\w*indexer\.[\w.]+|\w*compressor\.[\w.]+", "attn_index", ()),
    (r"q_a_proj|q_down_proj|linear_q_down_proj|attn_q_a|wq_a", "attn_q_a", ()),
    (r"q_b_proj|q_up_proj|linear_q_up_proj|attn_q_b|wq_b", "attn_q_b", ()),
    (r"kv_a_proj_with_mqa|kv_a_proj|linear_kv_down_proj|attn_kv_a_mqa|attn_kv_a|wkv_a", "attn_kv_a", ()),
    (r"kv_b_proj|linear_kv_up_proj|attn_(kv|k|v)_b|wkv_b|(embed_q|unembed_out)", "attn_kv_b", ()),
    (rf"{_ATTN}\.(\w*g_proj|gate_proj|\w*gate|g_[ab]_proj|to_gate\w*|sink_proj|gate_\w+|to_g|proj_[lw])(\.\d)?|"
     r"(\w*mha\w*)\.to_g|attn_gate|ssm_g_[ab]|ogate(_preact)?|sampling_offsets|attention_weights|to_gate_logits",
     "attn_index", ()),
    (rf"\w*qkv\w*(\.\d)?|query_key_value|queries_keys_values|[wW]qkv|in_proj_weight|{_ATTN}\.(in_proj|c_attn|attn|"
     r"att_proj|qkv\w*)|c_attn|att_proj|W_pack", "attn_qkv", ()),
    (r"\w*kv_proj|to_kv|key_value\w*|kv_linear|\w*_kv|kv|c_kv|keys_values|linear_kv", "attn_kv", ()),
    (rf"{_ATTN}\.(project_q|vision_proj)", "attn_q", ()),
    (rf"{_ATTN}\.(project_k|text_proj)", "attn_k", ()),
    (rf"{_ATTN}\.(project_v|values_\w+_proj)", "attn_v", ()),
    (r"(\w*_)?(q_proj|query|query_proj|q_lin|q_attn|wq|attn_q|cross_attn_q|to_q|to_query|linear_q|q_linear|proj_q|"
     r"query_global|query_layer|query_dense|c_q|W_?[Qq]|q_conv|q_head)|\w*Attention\.q|q|queries|linear_q_proj|"
     r"add_q_proj|theta", "attn_q", ()),
    (r"(\w*_)?(k_proj|key|key_proj|k_lin|wk|attn_k|cross_attn_k|to_k|to_key|linear_k|k_linear|proj_k|key_global|"
     r"key_layer|key_dense|c_k|W_?[Kk]|k_head|key_protein|to_k_ip(\.\d)?)|\w*Attention\.k|k|keys|add_k_proj",
     "attn_k", ()),
    (r"(\w*_)?(v_proj|value|value_proj|v_lin|wv|attn_v|cross_attn_v|to_v|to_value|linear_v|v_linear|proj_v|"
     r"value_global|value_layer|value_dense|v_proj_current|v_proj_delayed|c_v|W_?[Vv]|v_head|value_protein|to_v_ip(\.\d)?)|\w*Attention\.v|v|"
     r"values|add_v_proj", "attn_v", ()),
    (rf"(?!\w*attentions\.\d+\.proj_out$){_ATTN}{_IN}\.(\w*output\.dense|layout_output\.dense|dense|c_proj|"
     r"(\w*_)?out_proj|(img_|txt_|attn_|c_|o_|o_[ab]_)?proj|o_\w*proj|out_\w+_proj|wo|Wo|o|\w*to_out(\.0)?|"
     r"out(put)?|out_layer|linear_(out|proj|o)|proj_out|output_proj\w*|out_lin|final_linear|to_add_out|out_linear|"
     r"project\.\d|\w*_out|o_linear|head_mix\w*|out_projection|layer_out\w*|linear|fc_o|projection|final|post|"
     r"attn_layer\.\d\.merge)|attn_layer\.\d\.merge", "attn_o", ()),
    (r"o_proj|out_lin|\w*attn_out(put)?|attn_o|cross_attn_o|to_out(\.0)?|to_add_out|add_out_proj|"
     r"attn\.\w+\.out_proj|self_attention\.linear_proj|attn_proj|mlstm_layer\.out_proj|\w*_attn_proj|proj_attn|"
     r"temporal_dense", "attn_o", ()),
    # Feed-forward. Of two factors that are multiplied, the one that passes the activation is the gate.
    (r"(img|txt)_mlp\.proj", "mlp_up", ("QwenImage21Transformer2DModel",)),
    (r"experts\.fc1", "mlp_gate_up", ("aria", "aria_text")),
    (r"mlp\.w2", "mlp_gate", ("qwen",)),
    (r"mlp\.w1", "mlp_up", ("qwen",)),
    (r"(ff|ff_context)\.linear_1|(mlp|experts\.0)\.fc_1|mlp\.(fc1_g|fc12|c_fc_0)|feed_forward\.linear_1",
     "mlp_gate", ()),
    (r"blocks\.\d+\.(mlp|ffn)\.w1", "mlp_gate", ()),
    (r"(ff|ff_context)\.linear_2|(mlp|experts\.0)\.fc_2|mlp\.(fc1_x|fc11|c_fc_1)|feed_forward\.linear_3|blocks\.\d+\.(mlp|ffn)\.w2",
     "mlp_up", ()),
    (r"blocks\.\d+\.(mlp|ffn)\.w3|(ff|ff_context)\.out_projection|(mlp|experts\.0)\.proj", "mlp_down", ()),
    (r"\w*gate_up_proj|input_linear|mlp\.Wi|gate_up|w13|w12|proj_up_gate|mlp\.weights_in|ffn_gate_up(_exps|"
     r"_shexp)?|gate_and_up_proj", "mlp_gate_up", ()),
    (r"output_linear|mlp\.weights_out", "mlp_down", ()),
    (r"\w*gate_proj|ffn_gate(_(exps|shexp|chexps)|\.\d+|_1)?|wi_0|w1|gate|\w*_gate_linear|vis_gate|w_gate|"
     r"gate_layer|w_0|mlp\.w0", "mlp_gate", ()),
    (r"\w*up_proj|ffn_up(_(exps|shexp|chexps)|\.\d+|_1)?|wi|wi_1|w3|v1|vis_up|w_up|proj_mlp|w_in\.w_1", "mlp_up", ()),
    (r"(\w*_)?(fc1|c_fc|dense_h_to_4h|fc_in|lin1|pwconv1|linear1|linear_fc1|w_in|ff_in)|\w*intermediate\w*\.dense|"
     r"intermediate_dense|\w+_inter\.dense|ffn|(convnext\.\d+\.)?pw1|linear_up", "mlp_up", ()),
    (rf"{_MLP}\.(fc|fc_1|fc1?|linear_?1|dense_?1|w_in|proj_in|in_proj|in_layer|up|layer1|[01]|0\.proj|dense\.dense|"
     r"\d\.0|proj_up|in|dense_in|project_in|w_1|input_dense|in_projection|start|input_proj|net\.0\.proj|lin_in|"
     r"channel_mix_in|layer_1|linear_in|ffw_layer_1|intermediate|ln1\.linear|swish_linear\.0)", "mlp_up", ()),
    (r"\w*down_proj|ffn_down(_(exps|shexp|chexps)|\.\d+|_1)?|wo|w2|mlp\.Wo|c_proj|vis_down|w_down", "mlp_down", ()),
    (r"(\w*_)?(fc2|dense_4h_to_h|fc_out|lin2|pwconv2|linear2|linear_fc2|ffn_output|w_out|ff_out)|"
     r"\w*output\w*\.dense|output_dense|(convnext\.\d+\.)?pw2|linear_down", "mlp_down", ()),
    (rf"{_MLP}\.(linear_?2|dense_?2|proj_out|out_proj|out_layer|down|layer2|[2345]|\d\.3|proj_down|out|dense_out|"
     r"project_out|w_2|output_dense|out_projection|output_proj|proj|output|lin_out|layer_2|linear_out|ffw_layer_2|"
     r"ln2\.linear)", "mlp_down", ()),
    (r"out_proj", "attn_o", ()),
    (r"downsample\.reduction|reduction|\w*project\w*(\.\d)?|\w*proj(_in|_out|\d)?(\.\d)?|(?!\w*_proj_weight$)\w*_proj_\w+",
     "projector", ()),
)  # fmt: skip

_NORM = re.compile(
    r"(?:^|[._])(?:(?!layernorm_(?:qkv|linear|mlp)(?:\.|$))\w*norm\w*|\w*Norm\w*|ln(?:_\w+|\d+)?|bn\d*|running_(?:mean|var)|(?:\w*snake\d*|act\w*|blocks?\.\d+|norm\d*)\.(?:alpha|beta)|"
    r"layer_?scale\w*(?:\.gamma)?|ls\d?(?:\.gamma)?|gamma(?:_\d)?|grn\.\w+|norm\w*\.scale|logit_scale|temperature|"
    r"\w*per_dim_scale\w*|ffn_scale\w*|out_scale|layer_output_scale)$"
)
_BIAS = re.compile(r"(?:^|[._])bias(?:_\w+)?$|_[wrs]_bias$|(?:^|\.)(?:pos_)?bias_[uv]$")
_EXPERT = re.compile(
    r"(?:^|\.)(?:(?:\w*_)?experts?|switch_(?:mlp|glu))\.|_exps$|_chexps$|ffn_(?:gate|up|down)\.\d+$|block_sparse_moe\.(?:in|out)put_linear$"
)
_SHARED = re.compile(r"(?:^|\.)\w*shared_(?:experts?|mlp)\.|_shexp$")
#: What a name may carry after the module: how the weight is kept, not what it does.
_KEPT = re.compile(
    r"(?:\.(?:weight|kernel|weight_[vg]|weight_orig|weight_bar|parametrizations\.weight\.original\d?|"
    r"MatMul\.weight|original_module|base_layer))+$"
)
_ENDINGS = ("weight", "kernel", "_v", "_g", "_orig", "_bar", "original", "original0", "original1", "module", "layer")
_SAYS_NOTHING = re.compile(
    r"\.(?:linear|dense|lin|proj|conv|layer|module|inner|fn|func|op|\d|projection|linear_?\d|fc|original)$|_weight$"
)
#: Convolutions of one position that are stored as what they are, a feed-forward network (ConvNeXt).
_POINTWISE = re.compile(r"(?:p(?:oint)?w(?:ise)?_?conv_?|block\.)([1235])$")
#: Roles of matrices: under these names a weight with more axes is a convolution.
_OR_CONV = frozenset({"projector", "embed", "lm_head"})
#: Of a name longer than any real one, the end is read: patterns take time with the length.
_LONGEST, _DEEPEST = 256, 14
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
_INNER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
#: Roles outside the blocks even where their names have numbers (`classifier.1`).
NO_BLOCK = frozenset({"classifier", "cond_embed", "lm_head", "patch_out", "pooler", "regressor", "time_embed"})


def classify(name: str, ndim: int, config: Mapping[str, Any]) -> RoleMatch:
    """Role of the tensor `name` with `ndim` axes, and the first number in its name.

    `config` is the model's config.json: its `model_type` (diffusers: `_class_name`) decides between families that
    use one name for two things. Names without an entry get the role `conv` (weights of three axes or more)
    or `other`.
    """
    stem = _stem(name)
    kernel = ndim > 3 or (ndim == 3 and stem != name)  # a weight of three axes is a convolution's, other things are not
    family = str(config.get("model_type") or config.get("_class_name") or "")
    # Blocks and experts repeat the same names: each is looked up once.
    role = _role(_INNER_NUMBER.sub("0", stem), ndim == 2, kernel, family)
    number = None if role in NO_BLOCK else _NUMBER.search(stem)
    return RoleMatch(role, int(number[1]) if number else None)


def _stem(name: str) -> str:
    """The module's name: dots for slashes (Keras, ONNX, flax), nothing that says how the weight is kept."""
    if "/" in name:
        name = name.replace("/", ".").lstrip(".").removesuffix(":0")
    stem = name[-_LONGEST:]
    if stem.endswith(_ENDINGS):
        stem = _KEPT.sub("", stem) or stem
    return stem if stem.count(".") < _DEEPEST else "." + ".".join(stem.rsplit(".", _DEEPEST)[1:])


@lru_cache(maxsize=16384)
def _role(stem: str, flat: bool, kernel: bool, family: str) -> str:
    if _BIAS.search(stem) and "relative" not in stem and "rel_pos" not in stem:
        return "bias"
    if _NORM.search(stem):
        return "norm"
    name, role = stem, _look_up(stem, family)
    while role is None and (shorter := _SAYS_NOTHING.sub("", name)) != name and _still_says(shorter, name):
        name, role = shorter, _look_up(shorter, family)
    if role is None:
        return "conv" if kernel else "other"
    if role.startswith("mlp_"):
        family_of = "shared_" if _SHARED.search(name) else "expert_" if _EXPERT.search(name) else "mlp_"
        return role.replace("mlp_", family_of)
    return _by_axes(role, name, flat=flat, kernel=kernel)


def _still_says(shorter: str, stem: str) -> bool:
    """Whether a name without its end still has a module: `decoder.0` is the first layer, and no head `decoder`."""
    return "." in shorter or stem.endswith("_weight")


def _by_axes(role: str, stem: str, *, flat: bool, kernel: bool) -> str:
    """The same names are used for kernels and for the matrices that do a kernel's work."""
    if kernel and role in _OR_CONV:
        return "conv"
    if flat and role == "conv" and (pointwise := _POINTWISE.search(stem)):
        return "mlp_up" if pointwise[1] in "13" else "mlp_down"
    return "projector" if flat and role == "conv" and stem.endswith(("conv_in", "conv_out")) else role


def _look_up(stem: str, family: str) -> str | None:
    for pattern, role, types in _compiled():
        if (not types or family in types) and pattern.search(stem):
            return role
    return None


@lru_cache(maxsize=1)
def _compiled() -> tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...]:
    return tuple((re.compile(rf"(?:^|\.)(?:{pattern})$"), role, types) for pattern, role, types in _TABLE)
