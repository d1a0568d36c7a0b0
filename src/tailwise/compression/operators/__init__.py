"""Operators: what is done to one matrix. Arrays only: they know no files and no models. `table.py` has them all."""
