"""Norms that more than one layer takes in, or that a layer takes in otherwise than as its next."""
