"""What the stored tensors are: a table of readings that claim them, module by module."""
