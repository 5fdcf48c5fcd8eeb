"""Scripts of ``benchmarks/`` as modules: they are no package, and are tested all the same."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@contextmanager
def loaded_benchmark(name: str) -> Iterator[ModuleType]:
    """``benchmarks/NAME.py``, imported under a name of its own, and forgotten at the end."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]
