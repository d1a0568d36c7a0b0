"""From a plan and a checkpoint to a checkpoint: written, resumed, read back."""
