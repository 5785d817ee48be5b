"""Being asked to stop, stopping together, and noticing that somebody has stopped answering."""
