"""``python -m avssl``: the command line, for places where no console script is on the path (torchrun, SLURM)."""

from __future__ import annotations

from avssl.cli import main

if __name__ == "__main__":
    main()
