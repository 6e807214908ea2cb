"""A run from its recipe to a folded network."""
