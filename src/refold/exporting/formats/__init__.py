"""One format a file: how a network is written in it, and how the file is run again."""
