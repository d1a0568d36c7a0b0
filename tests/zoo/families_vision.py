"""Vision models of transformers."""

from __future__ import annotations

from zoo.tiny import family

VISION = "transformers: vision"

ENTRIES = [
    family(VISION, "aimv2_vision_model", 2),
    family(VISION, "beit", 2),
    family(VISION, "data2vec-vision", 2),
    family(VISION, "deit", 2),
    family(VISION, "dinov2", 2),
    family(VISION, "dinov2_with_registers", 2),
    family(VISION, "dinov3_vit", 2),
    family(VISION, "dpt", 2),
    family(VISION, "ijepa", 2),
    family(VISION, "imagegpt", 2),
    family(VISION, "pixio", 2),
    family(VISION, "pixtral", 2),
    family(VISION, "sam3_vision_model", 6, since="unreleased"),
    family(VISION, "sapiens2", 2, since="unreleased"),
    family(VISION, "segformer", 4,
           pending="patch embeddings of a stage are outside its blocks in a file", since="unreleased"),
    family(VISION, "siglip", 2),
    family(VISION, "siglip2", 2),
    family(VISION, "timesformer", 2),
    family(VISION, "videomae", 2),
    family(VISION, "vit", 2),
    family(VISION, "vit_mae", 2),
    family(VISION, "vit_msn", 2),
    family(VISION, "vitdet", 2),
    family(VISION, "vivit", 2),
]  # fmt: skip
