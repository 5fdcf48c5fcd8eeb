"""A warning before the end: clusters send a signal, the run saves and leaves.

SLURM sends SIGTERM on preemption (``--signal=USR1@120`` sends SIGUSR1 two minutes before the time limit); torchrun
passes SIGTERM on to its workers. The handler only sets a flag; the loop finishes its step, writes a checkpoint, and
raises :class:`Preempted`.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

PREEMPTED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h, "try again later": a requeue script tests for it


class Preempted(SystemExit):
    """The run was asked to leave; the same call continues it from the checkpoint of ``step``.

    A :class:`SystemExit`, so that an uncaught one ends the process with :data:`PREEMPTED_EXIT_CODE` and no traceback.
    """

    def __init__(self, step: int, steps: int, where: str) -> None:
        super().__init__(PREEMPTED_EXIT_CODE)
        self.step = step
        kept = f"checkpoint in {where}" if step else f"nothing is in {where} yet"
        self.message = f"preempted; {kept}, step {step} of {steps}; run the same command again to continue"

    def __str__(self) -> str:
        return self.message


class PreemptionWatch:
    """Context in which SIGTERM and SIGUSR1 set ``requested`` instead of ending the process.

    Outside the main thread, where Python delivers no signals, it watches nothing; nor where it is not ``enabled`` (a
    run that keeps no checkpoint should die at once).
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.requested = False
        self._enabled = enabled
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PreemptionWatch:
        if self._enabled and threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1"):  # SIGUSR1 does not exist on Windows
                number = getattr(signal, name, None)
                if number is not None:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def wait(self, *, timeout_s: float) -> bool:
        """Whether a signal has come, or comes within ``timeout_s``."""
        if not self._previous:
            return False
        theirs = _deaf_to_children()
        deadline = time.monotonic() + timeout_s
        while not self.requested and time.monotonic() < deadline:
            time.sleep(0.02)
        if not self.requested and theirs is not None:
            signal.signal(signal.SIGCHLD, theirs)
        return self.requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        _deaf_to_children()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()


def _deaf_to_children() -> Any:
    """Take away the handler of SIGCHLD, and return it.

    A signal to a whole process group also ends the workers of a ``DataLoader``, whose handler of SIGCHLD would then
    raise in the middle of a step or of a save. Without it the loader still finds out, by itself, at the next batch.
    """
    if not hasattr(signal, "SIGCHLD"):
        return None
    return signal.signal(signal.SIGCHLD, signal.SIG_DFL)
