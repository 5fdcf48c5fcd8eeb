"""Where derived data lives: indices of folders that cannot be written to, and decoded clips."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_home() -> Path:
    """The cache of this user: ``$AVSSL_CACHE``, or ``~/.cache/avssl``."""
    given = os.environ.get("AVSSL_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "avssl"


def digest(*parts: object) -> str:
    """A short name for a combination of plain values: 32 hexadecimal digits."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
