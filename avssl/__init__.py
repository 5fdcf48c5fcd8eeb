"""The roof: the command line. It may import every other package; nothing imports it."""

from __future__ import annotations
