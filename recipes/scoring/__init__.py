"""Networks scored on benchmarks, one or a folder of them, and their results as files, tables and a page."""
