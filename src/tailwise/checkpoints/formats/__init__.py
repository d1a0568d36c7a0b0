"""One class a checkpoint format. `open_checkpoint` chooses among them."""
