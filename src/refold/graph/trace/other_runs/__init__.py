"""What a recorded graph takes for granted, found out by other runs of the same code."""
