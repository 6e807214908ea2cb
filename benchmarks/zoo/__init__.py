"""Many networks of other people's zoos, folded and compared: what `fold_zoo.py` runs."""
