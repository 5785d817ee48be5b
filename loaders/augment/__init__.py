"""Augmentation that is a function of (seed, view, record id): the policies, their draws, the pixels."""
