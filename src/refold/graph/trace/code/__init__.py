"""What source code tells of a model without running it."""
