"""Affine operators over feature maps: what they are, what they cost, and a dense oracle."""
