"""Audits that were started from the app: one process each, so that a kill costs nothing but its own time."""
