"""Images and batches, wherever they are stored."""
