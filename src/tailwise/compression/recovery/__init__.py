"""The parts of `recover()`: text divided in three, the training, masks and adapters."""
