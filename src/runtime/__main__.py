"""``python -m nemotron_style.runtime`` is the command line."""

from __future__ import annotations

import sys

from nemotron_style.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
