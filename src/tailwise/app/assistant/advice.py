"""What was measured on whole models, for questions that an audit alone cannot answer. Numbers: docs/evidence.md."""

from __future__ import annotations

from tailwise.app.assistant.answer import Fact

#: Held against docs/evidence.md by a test.
PRUNED: Fact = {
    "question": "do plans by alpha prune better than uniform?",
    "model": "pycode-8m", "operator": "magnitude", "sparsity": 0.7,
    "perplexity": {"dense": 24.57, "uniform": 40.3, "alpha block": 490.4, "owl": 33.44, "auto": 31.06},
    "cells": 24, "auto_lowest": 22, "auto_worse_than_uniform_beyond_noise": 0,
    "source": "docs/evidence.md",
}  # fmt: skip
QUANTIZED: Fact = {
    "question": "what do few bits cost?",
    "model": "pycode-8m", "operator": "rtn", "allocator": "uniform",
    "perplexity": {"dense": 24.57, "at 4.5 bits": 24.78, "at 3.5 bits": 25.35, "at 3 bits": 26.36,
                   "at 2.5 bits": 29.45},
    "bits": [4.5, 3.5, 3, 2.5],
    "cells_at_3_5_bits_and_below": 12, "auto_better_than_uniform_there": 11, "auto_worse_than_uniform_beyond_noise": 0,
    "source": "docs/evidence.md",
}  # fmt: skip
