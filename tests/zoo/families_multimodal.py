"""Models of transformers with several towers."""

from __future__ import annotations

from zoo.tiny import family

MULTI = "transformers: multimodal"

ENTRIES = [
    family(MULTI, "altclip", 4),
    family(MULTI, "aria", 4,
           pending="a file's experts (fc1, fc2) are read otherwise than the live stack", since="unreleased"),
    family(MULTI, "audioflamingo3", 4),
    family(MULTI, "aya_vision", 4),
    family(MULTI, "blip", 4),
    family(MULTI, "blip-2", 6, pending="bare parameters of three axes have lost their role in a live module"),
    family(MULTI, "chinese_clip", 4),
    family(MULTI, "clip", 2),
    family(MULTI, "clipseg", 4),
    family(MULTI, "deepseek_vl", 4),
    family(MULTI, "flava", 6, pending="blocks of towers are numbered by the order of the file", since="unreleased"),
    family(MULTI, "gemma3", 4),
    family(MULTI, "git", 4,
           pending="block numbers have a gap: norms and biases beside a projector are counted", since="unreleased"),
    family(MULTI, "idefics", 6, pending="blocks of stacks are numbered by the order of the file", since="unreleased"),
    family(MULTI, "idefics2", 4,
           pending="block numbers have a gap: norms and biases beside a projector are counted", since="unreleased"),
    family(MULTI, "idefics3", 4),
    family(MULTI, "instructblip", 6, pending="bare parameters of three axes have lost their role in a live module"),
    family(MULTI, "internvl", 4),
    family(MULTI, "kimi_k25", 4, pending="the file's names have other roles", since="unreleased"),
    family(MULTI, "kosmos-2", 4),
    family(MULTI, "llava", 4),
    family(MULTI, "llava_next", 4),
    family(MULTI, "llava_onevision", 4),
    family(MULTI, "mistral3", 4),
    family(MULTI, "ovis2", 4, pending="a subclass of Embedding is not taken for a table"),
    family(MULTI, "owlvit", 4),
    family(MULTI, "paligemma", 4),
    family(MULTI, "qwen2_audio", 4),
    family(MULTI, "qwen2_vl", 4,
           pending="block numbers have a gap: norms and biases beside a projector are counted", since="unreleased"),
    family(MULTI, "smolvlm", 4),
    family(MULTI, "udop", 4,
           pending="block numbers have a gap: norms and biases beside a projector are counted", since="unreleased"),
    family(MULTI, "video_llava", 6),
    family(MULTI, "vilt", 2),
    family(MULTI, "visual_bert", 2, pending="visual_token_type_embeddings has no role in a file", since="unreleased"),
    family(MULTI, "voxtral", 4),
]  # fmt: skip
