"""A training that several cells of one recording need is done once.

Cells are functions of an arm, a seed and a configuration, and where ten arms ask the same network ten questions, each
would train it anew. ``avssl record`` names a place, one for every state of the code and every kind of device; a cell
that wants a training asks here for a folder in it, and :func:`~avssl_core.training.fit` finds the finished run, or
trains it. Since a run is a function of its configuration, figures do not depend on who came first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from avssl_core.training.config import Scalar

SHARED_DIR = "AVSSL_SHARED_DIR"
"""The environment variable that names the place; where it is not set, nothing is shared."""


@contextmanager
def shared_run(context: Mapping[str, Scalar]) -> Iterator[Path | None]:
    """A folder for ``run_dir`` of :func:`~avssl_core.training.fit`, held by one process at a time; None outside.

    Args:
        context: all that decides the training, as :func:`~avssl_core.training.run_context` gives it, the seed included.

    A process that asks for a folder in use waits until the other has trained, or has died.
    """
    home = os.environ.get(SHARED_DIR)
    if not home:
        yield None
        return
    import fcntl

    named = json.dumps(dict(context), sort_keys=True)
    folder = Path(home, hashlib.sha256(named.encode()).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # let go when the file is closed, by the system too
        yield folder
