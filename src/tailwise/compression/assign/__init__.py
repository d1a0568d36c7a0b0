"""Assigners: from candidates, formats and a budget of bits to a format for each. One function each."""
