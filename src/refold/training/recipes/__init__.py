"""How to train, as data: recipes that are read, checked and written."""
