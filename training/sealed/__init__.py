"""Sealed evaluation: scores are made in a process that has never run a recipe's code, from logits alone."""
