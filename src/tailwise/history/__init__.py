"""What was measured over time: points of a training run, audits of its checkpoints, and alarms. Imports no torch."""
