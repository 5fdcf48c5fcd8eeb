"""``avssl doctor``: each check finds what it is for, says what to do, and never raises."""

from __future__ import annotations

import collections
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from avssl import doctor, doctor_machine
from avssl.doctor import Finding, import_failure, table_of

GIB = 1024**3
Memory = collections.namedtuple("Memory", "available")
Disk = collections.namedtuple("Disk", "total used free")


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_this_machine_can_run_chapters(monkeypatch: pytest.MonkeyPatch) -> None:
    # The import of the trio in a fresh process takes seconds, and is what the README's `avssl doctor` is run for.
    monkeypatch.setattr(doctor, "import_failure", lambda modules: None)
    findings = doctor.examine(Path.cwd())
    assert [finding for finding in findings if finding.level == "blocks"] == []
    whats = {finding.what for finding in findings}
    assert {"Python", "torch trio", "Jupyter kernel", "codec mpeg4", "codec aac", "codec h264"} <= whats
    assert {"threads", "memory", "disk (runs)", "disk (cache)", "cache"} <= whats


def test_everything_that_is_not_ok_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(9, 9, 0))
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    findings = doctor.check_memory() + doctor.check_disk(Path.cwd()) + doctor.check_threads() + doctor.check_cuda()
    assert {finding.level for finding in findings if finding.what != "GPU"} == {"note", "blocks"}
    assert all(finding.do for finding in findings if finding.level != "ok")
    assert table_of(findings).row_count == len(findings)


@pytest.mark.parametrize(("free", "level"), [(1, "blocks"), (4, "note"), (16, "ok")])
def test_memory_levels(monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(free * GIB))
    assert only(doctor.check_memory()).level == level


@pytest.mark.parametrize(("free", "level"), [(0.1, "blocks"), (2, "note"), (16, "ok")])
def test_disk_levels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(9, 9, free * GIB))
    assert {finding.level for finding in doctor.check_disk(tmp_path)} == {level}


def test_each_disk_has_a_remedy_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache that is not there yet will lie on the disk of the nearest folder above it."""
    disk = tmp_path / "scratch"
    disk.mkdir()
    monkeypatch.setenv("AVSSL_CACHE", str(disk / "later" / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(9, 9, 0 if place == disk else 9 * GIB))
    levels = {finding.what: finding.level for finding in doctor.check_disk(tmp_path)}
    assert levels == {"disk (runs)": "ok", "disk (temporary)": "ok", "disk (cache)": "blocks"}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(9, 9, 0))
    remedies = [finding.do for finding in doctor.check_disk(tmp_path)]
    for remedy, named in zip(remedies, ("--out", "TMPDIR=", "AVSSL_CACHE="), strict=True):
        assert named in remedy


def test_a_check_that_raises_is_a_finding_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*arguments: object) -> list[Finding]:
        raise PermissionError("[Errno 13] Permission denied: '/proc/meminfo'\nmore")

    checks = [name for name in vars(doctor) if name.startswith("check_")]
    for name in checks:
        monkeypatch.setattr(doctor, name, raises)
    findings = doctor.examine(Path.cwd())
    assert len(findings) == len(checks) == 11
    assert {(finding.level, bool(finding.do)) for finding in findings} == {("blocks", True)}
    assert "PermissionError: [Errno 13] Permission denied: '/proc/meminfo'" in findings[0].found
    monkeypatch.setattr(doctor, "check_threads", lambda: [Finding("ok", "threads", "2 cores")])
    assert [finding.level for finding in doctor.examine(Path.cwd())].count("ok") == 1
    assert table_of(findings).row_count == 11


def test_an_import_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: list[str], *, timeout: float, **others: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    finding = only(doctor.check_trio())
    assert finding.level == "blocks" and "not imported within 300 s" in finding.found


def test_a_gpu_is_listed_only_once_it_has_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(device: str) -> None:
        if device == "cuda:1":
            raise RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors might be reported later")

    def properties(number: int) -> SimpleNamespace:
        if number == 2:
            raise AssertionError("Invalid device id")
        return SimpleNamespace(name=f"Card {number}", total_memory=80 * GIB)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(doctor_machine, "launch_kernel", launch)
    good, refuses, gone = doctor.check_cuda()
    assert (good.level, good.found) == ("ok", "Card 0, 80 GiB, computes")
    assert refuses.level == gone.level == "blocks" and "CUDA_VISIBLE_DEVICES=" in refuses.do
    assert refuses.found == "GPU 1, Card 1 computes nothing: RuntimeError: CUDA error: no kernel image is available"
    assert gone.found == "GPU 2 computes nothing: AssertionError: Invalid device id"


def test_the_small_kernel_is_run_and_its_sum_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    doctor_machine.launch_kernel("cpu")
    assert waited == ["cpu"]
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.zeros(size))
    with pytest.raises(RuntimeError, match=r"1 \+ 1 gave \[0\.0"):
        doctor_machine.launch_kernel("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_computes() -> None:
    assert {finding.level for finding in doctor.check_cuda()} == {"ok"}


def test_a_trio_that_does_not_import_together_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "import_failure", lambda modules: "OSError: undefined symbol")
    finding = only(doctor.check_trio())
    assert finding.level == "blocks"
    assert "undefined symbol" in finding.found
    assert "must match" in finding.do


def test_an_old_or_missing_trio_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.10.1+cu128", "torchvision": "0.26.0", "torchaudio": "2.11.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    finding = only(doctor.check_trio())
    assert finding.level == "blocks"
    assert finding.do.startswith("too old: torch;")
    del versions["torchaudio"]
    assert "missing: torchaudio" in only(doctor.check_trio()).found


def test_imports_are_tried_in_a_fresh_process() -> None:
    assert import_failure("json") is None
    assert "ModuleNotFoundError" in str(import_failure("no_such_module"))
    assert "exit code" in str(import_failure("os; os._exit(3)"))  # a crash says nothing


def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == "av":
            raise ImportError("libavcodec is missing")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    finding = only(doctor.check_imports())
    assert (finding.level, finding.what) == ("blocks", "av")
    assert "libavcodec" in finding.found


def test_every_package_that_the_project_asks_for_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[str] = []
    monkeypatch.setattr(doctor.importlib, "import_module", tried.append)
    assert only(doctor.check_imports()).level == "ok"
    assert {"seaborn", "nbclient", "nbformat", "ipykernel", "tqdm", "yaml", "sklearn", "tensorboard"} <= set(tried)
    assert "jupyter_client" in tried and not {"torch", "dask", "sphinx", "pytest"} & set(tried)  # no extras
    from_checkout = doctor.needed_packages()
    monkeypatch.setattr(doctor, "PYPROJECT", tmp_path / "pyproject.toml")  # installed without a checkout
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["av>=16", "nbval>=0.1; extra == 'test'"])
    assert doctor.needed_packages() == ["av"] and "av" in from_checkout


def test_a_codec_that_fails_blocks_only_where_chapters_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(codec: str) -> int:
        raise RuntimeError(f"no encoder for {codec}")

    monkeypatch.setattr(doctor, "video_round_trip", fails)
    levels = {finding.what: finding.level for finding in doctor.check_codecs()}
    assert levels == {"codec mpeg4": "blocks", "codec aac": "ok", "codec h264": "note"}


def test_a_kernel_that_starts_another_python_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

    other = KernelSpec(argv=["/opt/other/bin/python3", "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: other)
    finding = only(doctor.check_kernel())
    assert finding.level == "note"
    assert sys.executable in finding.do

    def none(self: object, name: str) -> KernelSpec:
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", none)
    assert only(doctor.check_kernel()).level == "blocks"


def test_a_cache_that_cannot_be_written_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "clip").write_bytes(b"0" * 1000)
    assert only(doctor.check_cache()).level == "ok"
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    finding = only(doctor.check_cache())
    assert finding.level == "blocks"
    assert "AVSSL_CACHE" in finding.do


def test_it_says_where_corpora_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the command was typed, if AVSSL_DATA is relative; else in the checkout."""
    here, root = tmp_path / "here", tmp_path / "root"
    here.mkdir()
    monkeypatch.chdir(here)
    for given, folder in ((str(tmp_path), tmp_path), ("./videos", here / "videos"), (None, root / "data")):
        monkeypatch.delenv("AVSSL_DATA", raising=False)
        if given is not None:
            monkeypatch.setenv("AVSSL_DATA", given)
        finding = only(doctor.check_data(root))
        assert finding.level == "note" and f"{folder / 'grid_lips'}," in finding.do
        (folder / "grid_lips").mkdir(parents=True)
        (folder / "grid_lips" / "words.csv").touch()
        finding = only(doctor.check_data(root))
        assert finding.level == "ok" and f"grid_lips in {folder} (" in finding.found


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_package_of_the_command_line_is_named(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from avssl.__main__ import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert f"the package {package!r} is not installed. Run: pip install" in found.stderr
