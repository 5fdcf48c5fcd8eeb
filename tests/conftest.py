"""What every test shares: where fixtures and real data lie, and one thread for torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("AVSSL_SHARED", ROOT.parent / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


# Their subject is not avssl_core, whose coverage is measured and which has tests of its own; Python of any kind takes a
# third longer while it is traced (3.11).
UNTRACED = (
    "test_chapter_",
    "test_cli_",
    "test_compress",
    "test_curate_",
    "test_grid_",
    "test_playground_",
    "test_project_",
    "test_record_",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith(UNTRACED):
            item.add_marker("no_cover")


def _required(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0", "false")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Numbers computed by the authors' code; absent outside CI, required in it (``AVSSL_REQUIRE_FIXTURES=1``)."""
    path = SHARED / "fixtures"
    if not path.is_dir():
        message = f"golden fixtures not found at {path}; set AVSSL_SHARED to the folder that holds fixtures/"
        pytest.fail(message) if _required("AVSSL_REQUIRE_FIXTURES") else pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The collection of real clips; tests that need it skip, with this message, where it is absent."""
    path = SHARED / "data" / "real"
    if not path.is_dir():
        pytest.skip(f"real clips not found at {path}; set AVSSL_SHARED to the folder that holds data/real/")
    return path
