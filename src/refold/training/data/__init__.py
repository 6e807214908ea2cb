"""Images and batches, wherever they lie."""
