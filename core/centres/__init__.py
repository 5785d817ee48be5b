"""Class centres: averages of teacher embeddings, trained, spread over ranks, slow or frozen; and their files."""
