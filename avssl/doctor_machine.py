"""What a machine has room for, as ``avssl doctor`` tells it: GPUs, cores, memory, disks, the cache, and data."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from avssl.places import DATA, data_home

GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``level`` is ``ok``, ``note`` (works, with a limit) or ``blocks``."""

    level: str
    what: str
    found: str
    do: str = ""


def check_cuda() -> list[Finding]:
    """GPUs, if any: a chapter runs without one, more slowly."""
    try:
        import torch
    except Exception:
        return []  # the trio check has said so
    if torch.cuda.is_available():
        return [_check_gpu(number) for number in range(torch.cuda.device_count())]
    if shutil.which("nvidia-smi"):
        remedy = "the driver is older than this torch's CUDA: update the driver, or install torch for an older CUDA"
        return [Finding("note", "GPU", f"there is a driver, but torch {torch.__version__} cannot use it", remedy)]
    return [
        Finding(
            "note", "GPU", "none: chapters run on the CPU", "smoke and small fit two cores; full-… budgets need GPUs"
        )
    ]


def _check_gpu(number: int) -> Finding:
    """A GPU that is listed may still refuse work: too old or too new for this torch, full, or in a fault."""
    import torch

    what = f"GPU {number}"
    try:
        gpu = torch.cuda.get_device_properties(number)
        what = f"GPU {number}, {gpu.name}"
        launch_kernel(f"cuda:{number}")
    except Exception as error:
        found = f"{what} computes nothing: {type(error).__name__}: {first_line(error)}"
        remedy = (
            "`nvidia-smi` shows whether it is full or faulty; otherwise install a torch built for it "
            "(pytorch.org); to do without it: export CUDA_VISIBLE_DEVICES="
        )
        return Finding("blocks", "GPU", found, remedy)
    return Finding("ok", "GPU", f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, computes")


def launch_kernel(device: str) -> None:
    """Add two small tensors on a device and wait for it.

    Raises:
        RuntimeError: the device cannot, or its sum is wrong.
    """
    import torch

    total = torch.ones(8, device=device) + torch.ones(8, device=device)
    torch.cuda.synchronize(device)
    if total.tolist() != [2.0] * 8:
        raise RuntimeError(f"1 + 1 gave {total.tolist()} on {device}")


def first_line(error: BaseException) -> str:
    """The message of an error without the lines of advice that CUDA adds."""
    return (str(error).splitlines() or [""])[0]


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
    import psutil  # here: where it is missing, the report says so

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
    """Space where runs, temporary files and caches go."""
    from avssl_core.data import cache_home

    temporary, cache = Path(tempfile.gettempdir()), existing_part(cache_home())
    return [
        _check_space("disk (runs)", root, "pass --out on another disk"),
        _check_space("disk (temporary)", temporary, "export TMPDIR=DIR on another disk"),
        _check_space("disk (cache)", cache, "export AVSSL_CACHE=DIR on another disk"),
    ]


def _check_space(what: str, place: Path, remedy: str) -> Finding:
    free = shutil.disk_usage(place).free / GIB
    found = f"{free:.1f} GiB free at {place}"
    if free < 0.5:
        return Finding("blocks", what, found, f"free some space, or {remedy}")
    if free < 5:
        return Finding("note", what, found, f"enough for small; for full-… budgets, free some space, or {remedy}")
    return Finding("ok", what, f"{free:.0f} GiB free at {place}")


def existing_part(place: Path) -> Path:
    """The folder, or the nearest above it that is there: what is made in it goes to that one's disk."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.exists())


def check_cache() -> list[Finding]:
    """Where generated clips and decoded caches lie, and whether that can be written."""
    from avssl_core.data import cache_home

    place = cache_home()
    if not os.access(existing_part(place), os.W_OK):
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


def check_data(root: Path) -> list[Finding]:
    """Corpora that chapters ask for by name: where they are looked for, and whether GRID lips is there."""
    folder = data_home(root)
    named = DATA if os.environ.get(DATA) else f"{DATA} is not set: data in the checkout"
    if (folder / "grid_lips" / "words.csv").is_file():
        return [Finding("ok", "corpora", f"grid_lips in {folder} ({named})")]
    build = f"avssl data grid ARCHIVES --out {folder / 'grid_lips'}, and set {DATA}={folder}"
    return [Finding("note", "corpora", f"no grid_lips in {folder} ({named}); the playground needs none", build)]
