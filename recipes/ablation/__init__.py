"""Variants of a recipe with several seeds: what to train, training it, and what the results say."""
