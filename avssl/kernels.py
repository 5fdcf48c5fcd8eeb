"""What every kernel here gets: an IPython folder of its own, private sockets, an end that comes with its parent's."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from traitlets.config import Config

# Runs first in every kernel: when papermill dies, however it dies, the kernel follows at once. ipykernel polls for
# its parent too (every second, from a thread that needs the GIL); PR_SET_PDEATHSIG is the operating system's own and
# needs nothing. Linux only; elsewhere the poller. And tqdm need not say that it finds no widgets.
_STARTUP = """\
import ctypes, os, signal, sys, warnings
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(os.environ.get("JPY_PARENT_PID") or os.getppid()):
        os._exit(1)
warnings.filterwarnings("ignore", message="IProgress not found")
del ctypes, os, signal, sys, warnings
"""


@contextmanager
def kernel_home(variables: Mapping[str, str]) -> Iterator[Path]:
    """Environment of a kernel to be started inside: the given variables, and an IPython folder of its own.

    Ranks that share one IPython folder fight over its history database; the reader's own start-up files do not belong
    in a run.
    """
    with tempfile.TemporaryDirectory(prefix="avssl-", dir=os.environ.get("AVSSL_SCRATCH")) as home:
        startup = Path(home) / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "00-end-with-parent.py").write_text(_STARTUP, encoding="utf-8")
        changes = {
            "IPYTHONDIR": str(Path(home) / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(Path(home) / "runtime"),
            "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one the user installed elsewhere
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        with environment(changes | dict(variables)):
            yield Path(home)


def kernel_config(home: Path) -> Config:
    """Talk to the kernel through sockets in ``home``: ranks cannot fight over ports, and no other user can listen."""
    config = Config()
    # The path of a socket has at most 103 characters on some systems; Windows has no such sockets.
    if sys.platform != "win32" and len(str(home)) < 80:
        config.KernelManager.transport = "ipc"
        config.KernelManager.ip = str(home / "kernel")  # the default is relative to the working directory
    return config


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while; processes started meanwhile inherit them."""
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
