"""Record a model into a flat graph: frames, memory effects, shapes."""
