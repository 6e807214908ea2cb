"""The command line: parse, call, print. `refold.cli.app.main` is the console script.

Nothing here imports torch at the top of a file, so that `refold --help` answers at once.
"""
