"""Cells forked from the test's process, for what does not depend on how the process of a cell is started."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from avssl import cell, cell_processes


class ForkedCell:
    """``python -m avssl.cell`` forked from this process; the part of :class:`subprocess.Popen` that is used for it."""

    def __init__(
        self, command: Sequence[str], *, stdout: BinaryIO, cwd: Path, env: Mapping[str, str], **others: object
    ) -> None:
        assert list(command[:3]) == [sys.executable, "-m", "avssl.cell"] and others["start_new_session"] is True
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                os.chdir(cwd)
                os.environ.clear()
                os.environ.update(env)
                for number in (1, 2):
                    os.dup2(stdout.fileno(), number)
                sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115 - pytest has its own
                cell.main(list(command[3:]))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            self._collect(os.WNOHANG)
        return self.returncode

    def wait(self) -> int | None:
        if self.returncode is None:
            self._collect(0)
        return self.returncode

    def _collect(self, options: int) -> None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)


def fork_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the cells of a test the seconds that a Python takes to import."""
    stand_in = SimpleNamespace(Popen=ForkedCell, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(cell_processes, "subprocess", stand_in)
