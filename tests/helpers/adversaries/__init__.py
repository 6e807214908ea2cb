"""Small modules that a careless recorder gets wrong, by kind; `judge` says how a fold of one does."""
