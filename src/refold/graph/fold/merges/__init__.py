"""Layers that become one where a region alone does not show that they could."""
