"""The command line: what ``avssl`` on the path and ``python -m avssl`` (torchrun, SLURM) start."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say which of its packages is missing, where even ``avssl doctor`` could not start."""
    try:
        from avssl.cli import main as command_line
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        sys.exit(f"avssl cannot start: the package {missing!r} is not installed. Run: pip install -e . in the checkout")
    command_line()


if __name__ == "__main__":
    main()
