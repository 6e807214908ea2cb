"""`python -m refold` is the console script."""

from __future__ import annotations

import sys

from refold.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
