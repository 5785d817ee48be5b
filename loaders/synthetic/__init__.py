"""Synthetic faces, drawn from numbers: for the demo, the tests and the benches."""
