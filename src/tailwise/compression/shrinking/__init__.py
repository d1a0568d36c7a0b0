"""Models that get smaller: heads, neurons and blocks that go, and factors in place of a matrix."""
