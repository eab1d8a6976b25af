"""Studies: finished runs in, a table or a figure out. Each is imported by its own name, so that none loads another."""
