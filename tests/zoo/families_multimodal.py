"""Models of transformers with several towers."""

from __future__ import annotations

from zoo.tiny import family

MULTI = "transformers: multimodal"

ENTRIES = [
    family(MULTI, "altclip", 4),
    family(MULTI, "aria", 4, since="unreleased"),
    family(MULTI, "audioflamingo3", 4),
    family(MULTI, "aya_vision", 4),
    family(MULTI, "blip", 4),
    family(MULTI, "blip-2", 6),
    family(MULTI, "chinese_clip", 4),
    family(MULTI, "clip", 2),
    family(MULTI, "clipseg", 4),
    family(MULTI, "deepseek_vl", 4),
    family(MULTI, "flava", 6, since="unreleased"),
    family(MULTI, "gemma3", 4),
    family(MULTI, "git", 4, since="unreleased"),
    family(MULTI, "idefics", 6, since="unreleased"),
    family(MULTI, "idefics2", 4, since="unreleased"),
    family(MULTI, "idefics3", 4),
    family(MULTI, "instructblip", 6),
    family(MULTI, "internvl", 4),
    family(MULTI, "kimi_k25", 4, since="unreleased",
           pending="position embeddings by two axes are read otherwise live than in a file"),
    family(MULTI, "kosmos-2", 4),
    family(MULTI, "llava", 4),
    family(MULTI, "llava_next", 4),
    family(MULTI, "llava_onevision", 4),
    family(MULTI, "mistral3", 4),
    family(MULTI, "ovis2", 4, since="unreleased"),
    family(MULTI, "owlvit", 4),
    family(MULTI, "paligemma", 4),
    family(MULTI, "qwen2_audio", 4),
    family(MULTI, "qwen2_vl", 4, since="unreleased"),
    family(MULTI, "smolvlm", 4),
    family(MULTI, "udop", 4, since="unreleased"),
    family(MULTI, "video_llava", 6),
    family(MULTI, "vilt", 2),
    family(MULTI, "visual_bert", 2, since="unreleased"),
    family(MULTI, "voxtral", 4),
]  # fmt: skip
