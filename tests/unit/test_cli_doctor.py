"""``avssl doctor``: each check finds what it is for, says what to do, and never raises."""

from __future__ import annotations

import collections
import importlib
import sys
from pathlib import Path

import pytest

from avssl import doctor
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
    assert {"threads", "memory", "disk (runs)", "cache"} <= whats


def test_everything_that_is_not_ok_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: Memory(GIB))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Disk(9, 9, 0))
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    findings = doctor.check_memory() + doctor.check_disk(Path.cwd()) + doctor.check_threads() + doctor.check_cuda()
    assert {finding.level for finding in findings if finding.what != "GPU"} == {"note", "blocks"}
    assert all(finding.do for finding in findings if finding.level != "ok")
    assert table_of(findings).row_count == len(findings)


@pytest.mark.parametrize(("free", "level"), [(1, "blocks"), (4, "note"), (16, "ok")])
def test_memory_levels(monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: Memory(free * GIB))
    assert only(doctor.check_memory()).level == level


@pytest.mark.parametrize(("free", "level"), [(0.1, "blocks"), (2, "note"), (16, "ok")])
def test_disk_levels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, level: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Disk(9, 9, free * GIB))
    assert {finding.level for finding in doctor.check_disk(tmp_path)} == {level}


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
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: False)
    finding = only(doctor.check_cache())
    assert finding.level == "blocks"
    assert "AVSSL_CACHE" in finding.do


def test_it_says_where_corpora_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVSSL_DATA", str(tmp_path))
    (finding,) = doctor.check_data()
    assert finding.level == "note" and str(tmp_path / "grid_lips") in finding.do
    (tmp_path / "grid_lips").mkdir()
    (tmp_path / "grid_lips" / "words.csv").touch()
    (finding,) = doctor.check_data()
    assert finding.level == "ok" and str(tmp_path) in finding.found
