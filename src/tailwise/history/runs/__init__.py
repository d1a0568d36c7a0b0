"""A training run as a row of checkpoints: found, audited in order, watched, and searched."""
