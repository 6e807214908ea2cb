"""Values that code spells in another way than the algebra does, spelled anew before the fold."""
