"""Fold: regions, simplified by the rules, become new nodes; what stays has a reason."""
