"""Capture any module as flat graphs, edit them, and write the edits back into a structural copy."""
