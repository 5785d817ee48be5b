"""The field's benchmarks: what each scores, and the one shape in which all of them report."""
