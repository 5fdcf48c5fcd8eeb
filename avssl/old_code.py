"""The code that a ledger's cells were made by, beside today's: a commit checked out for as long as it is needed.

A checkout lies in a temporary folder, as a detached worktree of the book's repository, and is removed again whatever
happens. That it holds the right code is not taken from the name of its commit: its own modules hash it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from avssl.errors import UsageError
from avssl.recording_status import Plan
from avssl_core.reporting import CodeHash, Ledger
from avssl_core.reporting.environment import git

# run by the checkout's own modules: how code is hashed may have changed since
_HASH = (
    "import json, sys; from avssl_core.reporting import code_hash; code = code_hash(sys.argv[1]); "
    "print(json.dumps([code.sha256, dict(code.definitions)]))"
)
_GIT_S = 600  # a checkout on a slow disk


@dataclass(frozen=True)
class Tree:
    """A checkout whose code runs cells: where it and its script are, the hash of its code, and a folder to work in."""

    name: str
    root: Path
    script: Path
    code: CodeHash
    scratch: Path


@contextmanager
def both_trees(plan: Plan, ledger: Ledger, old_code: str) -> Iterator[tuple[Tree, Tree]]:
    """The old code in a temporary checkout, and today's; both gone from the disk and from git afterwards."""
    if ledger.commit is None:
        raise UsageError(f"{plan.ledger} names no commit, so the code of its cells cannot be found; record again.")
    commit = ledger.commit.removesuffix("-dirty")
    prefix = git(plan.root, "rev-parse", "--show-prefix")
    if prefix is None or git(plan.root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise UsageError(f"commit {ledger.commit} of {plan.ledger} is not in git at {plan.root}; fetch it, or record.")
    with tempfile.TemporaryDirectory(prefix="avssl-keep-") as name:
        place = Path(name).resolve()
        with _checked_out(plan.root, commit, place / "checkout") as checkout:
            root = checkout / prefix
            script = _script_in(root, plan, ledger.commit)
            code = _code_there(root, script)
            _require_code(plan, ledger, old_code, code.sha256)
            old = Tree("old", root, script, code, place / "old")
            yield old, Tree("new", plan.root, plan.script, plan.code, place / "new")


@contextmanager
def _checked_out(repository: Path, commit: str, place: Path) -> Iterator[Path]:
    """A commit as a detached worktree that is removed again whatever happens."""
    command = ["git", "-C", str(repository), "worktree", "add", "--quiet", "--detach", str(place), commit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=False)
        if done.returncode:
            raise UsageError(f"git cannot check {commit} out into {place}: {done.stderr.strip()}")
        yield place
    finally:
        # twice forced: a checkout that was cut off is still locked
        git(repository, "worktree", "remove", "--force", "--force", str(place))
        shutil.rmtree(place, ignore_errors=True)
        git(repository, "worktree", "prune")


def _script_in(root: Path, plan: Plan, commit: str) -> Path:
    """The chapter's script in an old checkout, where its folder may have had another number."""
    same = root / plan.script.relative_to(plan.root)
    found = [same] if same.is_file() else sorted(root.glob(f"chapters/*/{plan.script.name}"))
    if not found:
        raise UsageError(f"commit {commit} of {plan.ledger} has no {plan.script.name} under chapters; record again.")
    return found[0]


def _code_there(root: Path, script: Path) -> CodeHash:
    """The code hash of a script by the modules of its own checkout."""
    command = [sys.executable, "-c", _HASH, str(script)]
    environment = {**os.environ, **import_from(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"the code of {script} cannot be hashed:\n{done.stderr.strip()[-2000:]}")
    return CodeHash(*json.loads(done.stdout))


def _require_code(plan: Plan, ledger: Ledger, wanted: str, found: str) -> None:
    """The commit must hold the cells' code, or the code from which they were kept before, perhaps uncommitted."""
    accepted = {wanted}
    for edit in reversed(ledger.kept):
        if edit["to"] in accepted:
            accepted.add(edit["from"])
    if found not in accepted:
        raise UsageError(
            f"{plan.ledger}: its cells were made by code {wanted[:12]}, but commit {ledger.commit} holds {found[:12]}: "
            "they were recorded before their code was committed, or the commit was rewritten. Record again."
        )


def import_from(root: Path) -> dict[str, str]:
    """Variables by which a Python started in ``root`` imports the packages of that checkout, not those installed."""
    paths = (str(root), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
