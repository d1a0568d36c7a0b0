"""Evaluations side by side: quality against size, as charts, tables and a page."""
