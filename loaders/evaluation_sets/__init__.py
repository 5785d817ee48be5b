"""Readers of evaluation sets: verification pairs, IJB-B/C, TinyFace."""
