"""Operators that round one matrix to a number format. Arrays only: they know no files and no models."""
