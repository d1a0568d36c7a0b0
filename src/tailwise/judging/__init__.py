"""What numbers mean: diagnosis, comparison, ranking and gates."""
