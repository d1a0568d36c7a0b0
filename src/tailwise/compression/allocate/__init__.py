"""Allocators: from candidates and a budget to an amount for each. One function each."""
