"""`python -m mmprod`: the same as the `mmprod` command."""

from __future__ import annotations

from mmprod.cli.main import main

if __name__ == "__main__":
    main()
