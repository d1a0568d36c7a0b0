"""Models of transformers for sound, and for series of numbers."""

from __future__ import annotations

from zoo.tiny import family

AUDIO = "transformers: audio"
OTHER = "transformers: series"

ENTRIES = [
    family(AUDIO, "audio-spectrogram-transformer", 2),
    family(AUDIO, "clvp", 12, since="unreleased"),
    family(AUDIO, "lasr_ctc", 2),
    family(AUDIO, "moonshine", 4),
    family(AUDIO, "moshi", 2),
    family(AUDIO, "parakeet_encoder", 2, since="unreleased"),
    family(AUDIO, "pop2piano", 4),
    family(AUDIO, "seamless_m4t", 4),
    family(AUDIO, "seamless_m4t_v2", 4),
    family(AUDIO, "wav2vec2-bert", 2, since="unreleased"),
    family(AUDIO, "whisper", 4, head="WhisperForConditionalGeneration"),
    family(OTHER, "decision_transformer", 2, since="unreleased"),
    family(OTHER, "patchtsmixer", 2),
    family(OTHER, "patchtst", 2),
    family(OTHER, "timesfm", 2, since="unreleased"),
]  # fmt: skip
