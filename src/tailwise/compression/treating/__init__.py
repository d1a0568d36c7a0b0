"""Tensors and layers as their treatment leaves them, and as they are read back: for trials and writers alike."""
