"""How well a model does what it is for: perplexity with intervals, paired comparisons, tasks, size and speed."""
