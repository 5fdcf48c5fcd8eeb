"""Starting worker processes from any program: notebook, command line or plain script."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module while workers start.

    A starting worker imports its parent's main module once more, to find functions that were defined there. Ours are
    not, and a plain script without a guard would begin the same work again in every worker, waiting for the lock that
    its parent holds.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
