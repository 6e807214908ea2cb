"""How to train, as data: read, check and write recipes."""
