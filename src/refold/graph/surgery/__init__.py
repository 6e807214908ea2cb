"""Edit a graph, then write the edits back into modules."""
