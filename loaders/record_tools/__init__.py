"""Whole record files made from others: shuffled, split, merged, described, converted from other formats."""
