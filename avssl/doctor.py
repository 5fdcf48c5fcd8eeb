"""``avssl doctor``: what this machine has and lacks, and what to do about each finding.

Every check runs by itself and reports; none raises. Only what keeps chapters from running *blocks*.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.markup import escape
from rich.table import Table

TRIO = ("torch", "torchvision", "torchaudio")
OLDEST = {"torch": (2, 11), "torchvision": (0, 26), "torchaudio": (2, 11)}
# What each room needs; read from the package's own metadata elsewhere, here only to say which import fails.
IMPORTS = (
    "av",
    "pandas",
    "pyarrow",
    "sklearn",
    "scipy",
    "safetensors",
    "matplotlib",
    "papermill",
    "jupytext",
    "nbconvert",
)
CODECS = {"mpeg4": "playground clips", "aac": "their sound", "h264": "most videos of public data sets"}
GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``level`` is ``ok``, ``note`` (works, with a limit) or ``blocks``."""

    level: str
    what: str
    found: str
    do: str = ""


def examine(root: Path) -> list[Finding]:
    """Run every check.

    Args:
        root: the checkout; disk space is looked at there.
    """
    checks: list[Callable[[], list[Finding]]] = [
        check_python,
        check_trio,
        check_imports,
        check_kernel,
        check_codecs,
        check_cuda,
        check_threads,
        check_memory,
        lambda: check_disk(root),
        check_cache,
        check_data,
    ]
    findings: list[Finding] = []
    for check in checks:
        findings += check()
    return findings


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
        return [Finding("blocks", "torch trio", f"missing: {', '.join(missing)}", "pip install -e . in the checkout")]
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
    """Why ``import modules`` fails in a fresh process (its last line), or None; a crash is a failure too."""
    result = subprocess.run([sys.executable, "-c", f"import {modules}"], capture_output=True, text=True, timeout=300)
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {result.returncode}"


def check_imports() -> list[Finding]:
    """The other packages that chapters import."""
    broken = []
    for name in IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:
            broken.append(
                Finding("blocks", name, f"{type(error).__name__}: {error}", "pip install -e . in the checkout")
            )
    return broken or [
        Finding("ok", "packages", f"av {_version('av')}, numpy {_version('numpy')}, papermill {_version('papermill')}")
    ]


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


def check_cuda() -> list[Finding]:
    """GPUs, if any: a chapter runs without one, more slowly."""
    try:
        import torch
    except Exception:
        return []  # the trio check has said so
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [Finding("ok", "GPU", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB") for gpu in names]
    if shutil.which("nvidia-smi"):
        remedy = "the driver is older than this torch's CUDA: update the driver, or install torch for an older CUDA"
        return [Finding("note", "GPU", f"there is a driver, but torch {torch.__version__} cannot use it", remedy)]
    return [
        Finding(
            "note", "GPU", "none: chapters run on the CPU", "smoke and small fit two cores; full-… budgets need GPUs"
        )
    ]


def check_threads() -> list[Finding]:
    """Cores this process may use, and what OMP_NUM_THREADS says."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    found = f"{cores} cores" + (f", OMP_NUM_THREADS={limit}" if limit else "")
    if limit and limit.isdigit() and int(limit) > cores:
        return [
            Finding("note", "threads", found, f"more threads than cores slows training: export OMP_NUM_THREADS={cores}")
        ]
    if cores < 2:
        return [Finding("note", "threads", found, "the minutes of the budgets are for two cores; expect twice as many")]
    return [Finding("ok", "threads", found)]


def check_memory() -> list[Finding]:
    """Memory that is free now; smoke fits 2 GiB."""
    free = psutil.virtual_memory().available / GIB
    if free < 2:
        return [Finding("blocks", "memory", f"{free:.1f} GiB free", "smoke needs 2 GiB: close programs")]
    if free < 6:
        return [
            Finding(
                "note", "memory", f"{free:.1f} GiB free", "smoke fits; for small, close programs or pass --budget smoke"
            )
        ]
    return [Finding("ok", "memory", f"{free:.0f} GiB free")]


def check_disk(root: Path) -> list[Finding]:
    """Space where runs and caches go."""
    findings = []
    for what, place in (("disk (runs)", root), ("disk (temporary)", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free / GIB
        if free < 0.5:
            findings.append(
                Finding(
                    "blocks", what, f"{free:.1f} GiB free at {place}", "free some space, or pass --out on another disk"
                )
            )
        elif free < 5:
            findings.append(
                Finding("note", what, f"{free:.1f} GiB free at {place}", "enough for small; full-… budgets need more")
            )
        else:
            findings.append(Finding("ok", what, f"{free:.0f} GiB free at {place}"))
    return findings


def check_cache() -> list[Finding]:
    """Where generated clips and decoded caches lie, and whether that can be written."""
    from avssl_core.data import cache_home

    place = cache_home()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        return [
            Finding("blocks", "cache", f"{place} cannot be written", "export AVSSL_CACHE=DIR with a folder of your own")
        ]
    used = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / GIB if place.exists() else 0.0
    return [
        Finding(
            "ok",
            "cache",
            f"{used:.1f} GiB in {place}",
            "may be deleted: everything in it is made again" if used > 10 else "",
        )
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def check_data() -> list[Finding]:
    """Corpora that chapters ask for by name: where they are looked for, and whether GRID lips is there."""
    folder = Path(os.environ.get("AVSSL_DATA", "data"))
    named = "AVSSL_DATA" if "AVSSL_DATA" in os.environ else "AVSSL_DATA is not set: data"
    if (folder / "grid_lips" / "words.csv").is_file():
        return [Finding("ok", "corpora", f"grid_lips in {folder} ({named})")]
    build = f"avssl data grid ARCHIVES --out {folder / 'grid_lips'}, and set AVSSL_DATA={folder.resolve()}"
    return [Finding("note", "corpora", f"no grid_lips in {folder} ({named}); the playground needs none", build)]
