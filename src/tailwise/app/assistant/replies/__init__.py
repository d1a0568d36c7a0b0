"""Answers without a language model: one function for what people ask, made from the results of functions alone."""
