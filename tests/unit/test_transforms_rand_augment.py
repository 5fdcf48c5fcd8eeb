"""RandAugment for clips: what is drawn for a clip holds for all of its frames, and nothing else is random."""

from __future__ import annotations

import pytest
import torch

from avssl_core.transforms import RandAugment
from avssl_core.transforms.rand_augment import OPERATIONS


def still(clips: int = 4, frames: int = 3) -> torch.Tensor:
    """Clips of one picture each, ``(B, 3, T, H, W)``."""
    picture = torch.randint(
        0, 256, (clips, 3, 1, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return picture.expand(clips, 3, frames, 16, 20).contiguous()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_still_clip_stays_still_and_clips_differ() -> None:
    out = RandAugment(20, 3, probability=1.0)(still(), generator())
    assert out.shape == still().shape and out.dtype == torch.uint8
    assert (out == out[:, :, :1]).all()
    assert not torch.equal(out, still())


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_pictures_and_keeps_their_form(name: str) -> None:
    frames = still(1)[0].transpose(0, 1)
    strong, mirrored = (OPERATIONS[name](frames, strength) for strength in (1.0, -1.0))
    assert strong.shape == frames.shape and strong.dtype == torch.uint8 and mirrored.dtype == torch.uint8
    assert name == "auto-contrast" or not torch.equal(strong, frames)  # the picture has all contrast there is


def test_the_draws_come_from_the_generator_alone() -> None:
    first, second = (RandAugment()(still(), generator(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, RandAugment()(still(), generator(4)))
    assert torch.equal(RandAugment(probability=0.0)(still(), generator()), still())


def test_weak_operations_do_little() -> None:
    frames = still(1)[0].transpose(0, 1)
    for name in ("brightness", "rotate", "move x", "shear y"):
        near = (OPERATIONS[name](frames, 0.0).int() - frames.int()).abs().max()
        assert near <= 1, name


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="0 <= magnitude <= 30"):
        RandAugment(31)
    with pytest.raises(ValueError, match=r"uint8 clips \(B, 3, T, H, W\)"):
        RandAugment()(still().float(), generator())
