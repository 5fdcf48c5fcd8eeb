"""What is stored beside results: versions, hardware, commit."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

from avssl_core.reporting import commit, hardware, versions
from avssl_core.reporting.environment import git


def test_versions_are_those_installed_and_nothing_else() -> None:
    found = versions(("torch", "no-such-package-anywhere"))
    assert set(found) == {"python", "torch"} and found["torch"] == version("torch")


def test_hardware_says_how_many_cores_may_be_used() -> None:
    assert hardware("cpu").endswith(" cores")


def test_commit_is_marked_when_tracked_files_differ(tmp_path: Path) -> None:
    assert commit(tmp_path) is None and git(tmp_path, "status") is None
    run = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    file = tmp_path / "a.txt"
    file.write_text("1", encoding="utf-8")
    for arguments in (["init", "-q"], ["add", "a.txt"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*run, *arguments], cwd=tmp_path, check=True, capture_output=True)
    clean = commit(tmp_path)
    assert clean is not None and len(clean) == 40
    (tmp_path / "untracked").write_text("1", encoding="utf-8")
    assert commit(tmp_path) == clean
    file.write_text("2", encoding="utf-8")
    assert commit(tmp_path) == f"{clean}-dirty"
