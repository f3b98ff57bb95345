"""``python -m tinyhat`` is the command line."""

from __future__ import annotations

from tinyhat.cli import main

if __name__ == "__main__":
    main()
