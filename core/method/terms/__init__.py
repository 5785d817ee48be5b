"""Losses of the student against the teacher, each a file: beside the margin softmax, or alone."""
