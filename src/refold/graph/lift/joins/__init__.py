"""Calls that join several values in a form of their own."""
