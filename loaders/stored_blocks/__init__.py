"""What folders of many rows have in common, whatever the rows are (teacher embeddings, decoded images).

A JSON header that states its own sha256 and binds the rows to what they came from; blocks of rows, each with a slot
that says whether it is done and what its bytes sum to; files that are opened with care. A build that is killed goes on,
a bit that changes is found, and what a stranger wrote is checked before it is believed.
"""
