"""Folders of many rows that were computed once: teacher embeddings (`teacher_cache`), decoded images (`packed_images`).

A header says what the rows are of; the rows are checked in blocks, each with a slot that says whether it is done and
what its bytes sum to. So a build that is killed goes on where it was, any number of processes end with the same bytes,
a bit that changes is found, and what a stranger wrote is checked before it is believed.
docs/formats.md and docs/formats.md specify the files.
"""
