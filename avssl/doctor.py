"""``avssl doctor``: what this machine has and lacks, and what to do about each finding.

Every check runs by itself and reports; one that raises becomes a finding. Only what keeps chapters from running
*blocks*.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from avssl.doctor_machine import (
    Finding,
    check_cache,
    check_cuda,
    check_data,
    check_disk,
    check_memory,
    check_threads,
    first_line,
)

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
TRIO = ("torch", "torchvision", "torchaudio")
OLDEST = {"torch": (2, 11), "torchvision": (0, 26), "torchaudio": (2, 11)}
MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml"}  # packages that are imported by another name
REINSTALL = "pip install -e . in the checkout"
CODECS = {"mpeg4": "playground clips", "aac": "their sound", "h264": "most videos of public data sets"}


def examine(root: Path) -> list[Finding]:
    """Run every check.

    Args:
        root: the checkout; disk space is looked at there.
    """
    checks: dict[str, Callable[[], list[Finding]]] = {
        "Python": check_python,
        "torch trio": check_trio,
        "packages": check_imports,
        "Jupyter kernel": check_kernel,
        "codecs": check_codecs,
        "GPU": check_cuda,
        "threads": check_threads,
        "memory": check_memory,
        "disk": lambda: check_disk(root),
        "cache": check_cache,
        "corpora": lambda: check_data(root),
    }
    return [finding for what, check in checks.items() for finding in _findings_of(what, check)]


def _findings_of(what: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds; one that raises has found something that nobody foresaw, and the others still run."""
    try:
        return check()
    except Exception as error:
        found = f"the check itself failed: {type(error).__name__}: {first_line(error)}"
        remedy = "mend what the message names and ask again; if it names nothing of this machine, report it"
        return [Finding("blocks", what, found, remedy)]


def table_of(findings: list[Finding]) -> Table:
    """The report, worst first within each check's order."""
    colours = {"ok": "green", "note": "yellow", "blocks": "bold red"}
    table = Table("", "what", "found", "what to do", header_style="bold")
    for finding in findings:
        mark = f"[{colours[finding.level]}]{finding.level}[/]"
        table.add_row(mark, escape(finding.what), escape(finding.found), escape(finding.do))
    return table


def check_python() -> list[Finding]:
    """Which Python this is (one older than 3.11 cannot install the package)."""
    return [Finding("ok", "Python", f"{sys.version.split()[0]} in {sys.prefix}")]


def check_trio() -> list[Finding]:
    """torch, torchvision and torchaudio are built against each other: they must import together, in a fresh process."""
    versions = {name: _version(name) for name in TRIO}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return [Finding("blocks", "torch trio", f"missing: {', '.join(missing)}", REINSTALL)]
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    old = [name for name in TRIO if _numbers(versions[name] or "") < OLDEST[name]]
    if old:
        return [Finding("blocks", "torch trio", found, f"too old: {', '.join(old)}; pip install -U {' '.join(TRIO)}")]
    failure = import_failure("torch, torchvision, torchaudio")
    if failure:
        remedy = "they must match; torchaudio 2.11 refuses torch 2.15: pip install 'torch<2.15' torchvision torchaudio"
        return [Finding("blocks", "torch trio", f"{found}: {failure}", remedy)]
    return [Finding("ok", "torch trio", found)]


def import_failure(modules: str) -> str | None:
    """Why ``import modules`` fails in a fresh process (its last line), or None; a crash or a hang is a failure too."""
    command = [sys.executable, "-c", f"import {modules}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        return f"not imported within {error.timeout:.0f} s (a disk or a driver that hangs?)"
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {result.returncode}"


def check_imports() -> list[Finding]:
    """The other packages that a run needs."""
    names = [name for name in needed_packages() if name not in TRIO]
    broken = [finding for name in names if (finding := _check_import(name)) is not None]
    found = ", ".join(f"{name} {_version(name)}" for name in ("av", "numpy", "papermill"))
    return broken or [Finding("ok", "packages", f"all {len(names)} import: {found}, …")]


def _check_import(package: str) -> Finding | None:
    try:
        importlib.import_module(MODULES.get(package, package.replace("-", "_")))
    except Exception as error:
        return Finding("blocks", package, f"{type(error).__name__}: {first_line(error)}", REINSTALL)
    return None


def needed_packages() -> list[str]:
    """What the checkout's ``pyproject.toml`` asks for, extras left out, by canonical names.

    Not the metadata of the installed package: they are of the day it was installed, and a checkout goes on.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    if PYPROJECT.is_file():
        asked = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:  # installed without a checkout
        asked = importlib.metadata.requires("avssl") or []
    wanted = [each for each in map(Requirement, asked) if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [canonicalize_name(each.name) for each in wanted]


def check_kernel() -> list[Finding]:
    """The Jupyter kernel that chapters run in is this Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return [
            Finding(
                "blocks",
                "Jupyter kernel",
                "no kernel named python3",
                f"{sys.executable} -m ipykernel install --sys-prefix",
            )
        ]
    here = Path(sys.executable)
    resolved = shutil.which(command) or command
    if Path(resolved).name.startswith("python") and (command == "python" or Path(resolved).parent == here.parent):
        return [Finding("ok", "Jupyter kernel", "python3 is this Python")]
    remedy = f"{sys.executable} -m ipykernel install --sys-prefix"
    return [Finding("note", "Jupyter kernel", f"python3 starts {command}, not {here}", remedy)]


def check_codecs() -> list[Finding]:
    """Encode a second and decode it again, for each codec that a chapter meets."""
    return [_check_codec(name, use) for name, use in CODECS.items()]


def _check_codec(name: str, use: str) -> Finding:
    level = "blocks" if name != "h264" else "note"
    try:
        decoded = audio_round_trip(name) if name == "aac" else video_round_trip(name)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        return Finding(
            level,
            f"codec {name}",
            found,
            f"needed for {use}: pip install --force-reinstall av (its wheels bring FFmpeg)",
        )
    return Finding("ok", f"codec {name}", f"encodes and decodes ({decoded} {'samples' if name == 'aac' else 'frames'})")


def video_round_trip(codec: str) -> int:
    """Write twelve frames with a codec, read them again; returns how many came back."""
    import torch

    from avssl_core.media import read_all, write_clip

    frames = (torch.arange(12 * 3 * 64 * 64) % 256).to(torch.uint8).reshape(12, 3, 64, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, frames, fps=12, video_codec="libx264" if codec == "h264" else codec)
        return len(read_all(path, fps=12, size=None, sample_rate=None).frames)


def audio_round_trip(codec: str) -> int:
    """Write a second of a tone with a codec beside black frames, read it again; returns the samples that came back."""
    import torch

    from avssl_core.media import read_all, write_clip

    tone = torch.sin(torch.arange(16000) * 0.1) * 0.5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, torch.zeros(25, 3, 64, 64, dtype=torch.uint8), tone, fps=25, audio_codec=codec)
        waveform = read_all(path, fps=25, size=None, sample_rate=16000).waveform
        if waveform is None or float(waveform.abs().max()) < 0.1:
            raise RuntimeError("the tone came back silent")
        return len(waveform)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
