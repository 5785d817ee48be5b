"""Formats that strangers write, each with its originals, its mutations and what its reader must make of them."""
