"""A number per spectrum: one decorated function each, by family."""
