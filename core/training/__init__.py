"""A run: its folder, its loop and step, its optimiser, what it logs, and steps that are not finite."""
