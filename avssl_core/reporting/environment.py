"""Where a number was made: versions, hardware and commit, as stored beside every recorded result."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("avssl", "torch", "torchvision", "torchaudio", "av", "numpy", "scipy", "scikit-learn", "pandas")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of Python and of each package; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cpu") -> str:
    """What ``device`` is, in words: the GPU's name, or the processor's with the cores this process may use."""
    if device.startswith("cuda"):
        import torch  # a report on CPU cells must not pay for importing torch

        return torch.cuda.get_device_name(device)
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git(folder: str | Path, *arguments: str) -> str | None:
    """Output of a git command in ``folder``; ``None`` without git, outside a repository, or where git refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit(folder: str | Path) -> str | None:
    """The commit checked out in ``folder``, with ``-dirty`` when tracked files differ from it; ``None`` outside git."""
    head = git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    return f"{head}-dirty" if git(folder, "status", "--porcelain", "--untracked-files=no") else head
