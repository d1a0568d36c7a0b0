"""Packed checkpoints: codes and scales in the layouts that servers load."""
