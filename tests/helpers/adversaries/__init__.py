"""Small modules that a careless recorder gets wrong, by kind; `judge` judges a fold of one."""
