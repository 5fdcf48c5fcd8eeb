"""Loading other people's weights: everything or nothing, and never code."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avssl_core.encoders import (
    GDT_IGNORED,
    AudioVisualModel,
    CheckpointError,
    ProjectionHead,
    R2Plus1D,
    ResNet9Audio,
    gdt_key_map,
    load_gdt_checkpoint,
    load_torchvision_r2plus1d,
    r2plus1d_key_map,
    read_state_dict,
    seeded_init,
    small,
)


def tiny(seed: int = 0) -> AudioVisualModel:
    with seeded_init(seed):
        return AudioVisualModel(
            R2Plus1D(4, (1, 1, 1, 1)), ResNet9Audio(4), ProjectionHead(32, 16, 8), ProjectionHead(32, 16, 8)
        )


def released(model: AudioVisualModel) -> dict[str, Tensor]:
    """``model`` as the release would have stored it, unused classifier included."""
    ours = model.state_dict()
    state = {theirs: ours[key].clone() for key, theirs in gdt_key_map(model).items()}
    return {**state, GDT_IGNORED[0]: torch.zeros(10, 32), GDT_IGNORED[1]: torch.zeros(10)}


def assert_same(a: AudioVisualModel, b: AudioVisualModel) -> None:
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s},
        lambda s: OrderedDict((f"module.{k}", v) for k, v in s.items()),
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"lr": 0.1}},
        lambda s: {k: v for k, v in s.items() if k not in GDT_IGNORED},
    ],
    ids=["plain", "model", "state_dict", "ddp", "ddp in model", "without classifier"],
)
def test_wrappers_and_prefixes(wrap: object, tmp_path: Path) -> None:
    source = tiny(1)
    path = tmp_path / "gdt.pth"
    torch.save(wrap(released(source)), path)
    model = load_gdt_checkpoint(path, tiny(0))
    assert_same(source, model)
    assert not model.training


def test_safetensors(tmp_path: Path) -> None:
    save_file(released(tiny(1)), tmp_path / "gdt.safetensors")
    assert_same(tiny(1), load_gdt_checkpoint(tmp_path / "gdt.safetensors", tiny(0)))


def test_missing_unexpected_and_misshapen_keys_are_named_and_nothing_is_loaded() -> None:
    state = released(tiny(1))
    model = tiny(0)
    first = "video_network.base.stem.0.weight"
    cases = [
        ({k: v for k, v in state.items() if k != first}, f"1 missing: {first}"),
        ({**state, "mlp_t.block_forward.2.weight": torch.zeros(2)}, "1 unexpected: mlp_t.block_forward.2.weight"),
        ({**state, first: torch.zeros(2, 3)}, r"1 of another shape: video_network.base.stem.0.weight \(2, 3\)"),
        ({f"video_network.{i}": torch.zeros(1) for i in range(20)}, "20 unexpected: .* and 12 more"),
    ]
    for broken, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_gdt_checkpoint(broken, model)
        assert_same(model, tiny(0))


def test_pickled_code_is_not_executed(tmp_path: Path) -> None:
    target = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(target).write_text, ("x",))

    for path, save in ((tmp_path / "a.pth", torch.save), (tmp_path / "b.pth", None)):
        payload = {"model": Attack()}
        if save:
            save(payload, path)
        else:
            path.write_bytes(pickle.dumps(payload, protocol=2))
        with pytest.raises(CheckpointError, match="safetensors"):
            load_gdt_checkpoint(path)
    assert not target.exists()


def test_unusable_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent\.pth"):
        read_state_dict(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"not tensors \(epoch\)"):
        read_state_dict({"epoch": 3, "weights": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no state dict"):
        read_state_dict({})
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="Tensor"):
        read_state_dict(tmp_path / "tensor.pth")


def test_another_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no counterpart of 'stem\.weight'"):
        load_gdt_checkpoint(released(tiny(1)), small(seed=0))


def test_depth_and_width_of_the_target_decide_what_is_expected() -> None:
    shallow, deep = R2Plus1D(4, (1, 1, 1, 1)), R2Plus1D(4, (2, 1, 1, 1))
    weights = shallow.state_dict()
    stored = {theirs: weights[ours] for ours, theirs in r2plus1d_key_map(shallow).items()}
    with pytest.raises(CheckpointError, match=r"missing: layer1\.1\.conv1\.0\.0\.weight"):
        load_torchvision_r2plus1d(stored, deep)
