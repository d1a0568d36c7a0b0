"""The same matrix in several number formats: what each does to the weights and to their spectrum."""
