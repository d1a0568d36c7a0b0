"""Operators that remove parameters from one matrix. Arrays only: they know no files and no models."""
