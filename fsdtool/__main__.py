"""`python -m fsdtool`: the same as the `fsdtool` command."""

from __future__ import annotations

import sys

from fsdtool.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
