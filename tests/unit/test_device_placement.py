"""Steps and evaluation run where the batch lies, checked without a GPU: fake CUDA tensors refuse to meet CPU tensors.

``FakeTensorMode`` propagates shapes, dtypes and devices and computes nothing, so that this says nothing about numbers
and everything about a buffer or a model that was left on the CPU. Only forward passes: autograd wants a real device.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from avssl_core import losses, reporting, training, transforms

CHAPTERS = Path(__file__).resolve().parents[2] / "chapters"
WORLD = training.World.single("cuda")
MODE = FakeTensorMode(allow_non_fake_inputs=True)


@pytest.fixture(scope="module")
def gdt() -> ModuleType:
    return reporting.load_definitions(CHAPTERS / "01_gdt" / "gdt.py")


@pytest.fixture(scope="module")
def imr() -> ModuleType:
    return reporting.load_definitions(CHAPTERS / "12_imr" / "imr.py")


def on_cuda(module: nn.Module) -> nn.Module:
    """The module with fake parameters and buffers on a GPU."""
    with MODE:
        for part in module.modules():
            for name, p in part._parameters.items():
                if p is not None:
                    fake = torch.empty(p.shape, dtype=p.dtype, device="cuda")
                    part._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
            for name, b in part._buffers.items():
                if b is not None:
                    part._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device="cuda")
    return module


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, device="cuda")


def test_the_check_can_fail() -> None:
    with MODE, pytest.raises(RuntimeError, match="same device"):
        zeros(3) + torch.zeros(3)


@pytest.mark.parametrize("arm", ["a", "e", "g", "h", "j", "k", "l", "m", "l-pairwise", "h-pairwise"])
def test_gdt_steps(gdt: ModuleType, arm: str) -> None:
    recipe, config = gdt.ARMS[arm], gdt.make_config(device="cuda", samples_per_step=32)
    row, step = losses.HYPOTHESES[recipe.row], gdt.objective(recipe, config, WORLD)
    model = on_cuda(gdt.build_model(config, 0))
    with MODE:
        shifts = row.branches[0]
        batch = {
            "frames": zeros(4, shifts, 8, 3, 56, 56, dtype=torch.uint8),
            "waveform": zeros(4, shifts, config.sample_rate),
        }
        loss, _ = step(model if row.cross_modal else model.video, batch, torch.Generator().manual_seed(0))
    assert loss.device.type == "cuda" and loss.shape == ()


def compressed_batch(imr: ModuleType, config: object) -> dict[str, Tensor]:
    """What the reader of compressed clips gives, for four clips."""
    kept = config.gops * len(imr.gop_spec(config).positions)
    return {
        "iframes": zeros(4, 3, config.gops, 56, 56, dtype=torch.uint8),
        "motion": zeros(4, 2, kept, 7, 7),
        "residual": zeros(4, 3, kept, 56, 56, dtype=torch.int16),
        "every_motion": zeros(4, 2, config.gops * config.gop_size, 7, 7),
        "row": zeros(4, dtype=torch.int64),
    }


@pytest.mark.parametrize("task", ["pmsp", "ctp", "ctp-binary", "pmsp-ctp", "arrow", "infonce"])
def test_imr_pretext_steps(imr: ModuleType, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but rotation, whose shapes depend on what is drawn."""
    draw = losses.draw_ctp

    def drawn_for_real(*arguments: object, **options: object) -> losses.CTPDraw:
        with _disable_current_modes():
            return draw(*arguments, **options)

    monkeypatch.setattr(losses, "draw_ctp", drawn_for_real)
    config, tasks = imr.make_config(device="cuda"), imr.TASKS[task]
    model = on_cuda(imr.PretextModel(imr.build_trunk(config, 0), tasks, config.gops))
    codec = any(name == "pmsp" or name.startswith("ctp") for name in tasks)
    step = imr.codec_tasks(config, tasks, WORLD) if codec else imr.picture_tasks(config, tasks[0], WORLD)
    with MODE:
        loss, _ = step(model, compressed_batch(imr, config), torch.Generator().manual_seed(0))
    assert loss.device.type == "cuda"


@pytest.mark.parametrize("fusion", ["none", "unidirectional", "bidirectional", "no-conv", "no-attention", "late"])
def test_imr_labelled_steps(imr: ModuleType, fusion: str) -> None:
    config = replace(imr.make_config(device="cuda"), **imr.FUSIONS[fusion])
    kind = imr.LateLabelled if fusion == "late" else imr.Labelled
    model = on_cuda(kind(imr.build_trunk(config, 0), {"a": ("x", "y"), "b": ("p", "q", "r")}, 0))
    step = imr.labelled_step(config, {name: torch.zeros(9, dtype=torch.int64) for name in "ab"})
    with MODE:
        loss, _ = step(model, compressed_batch(imr, config), torch.Generator().manual_seed(0))
    assert loss.device.type == "cuda"


def test_log_mel_follows_its_input() -> None:
    """A transform that a chapter builds on the CPU and never moves."""
    log_mel = transforms.LogMelSpectrogram(sample_rate=16_000, n_mels=40, n_fft=512)
    with MODE:
        assert log_mel(zeros(2, 16_000)).device.type == "cuda"
