"""One run of a module written down: calls of torch, sizes that know where they come from, draws."""
