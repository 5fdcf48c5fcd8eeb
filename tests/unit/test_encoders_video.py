"""Video encoders: sizes of the paper card, agreement with torchvision, the merged-axes form against plain conv3d."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

from avssl_core.encoders import (
    FactorisedVideoNet,
    R2Plus1D,
    kaiming_fan_out_,
    load_torchvision_r2plus1d,
    make_norm,
    mid_channels,
    r2plus1d_key_map,
    seeded_init,
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def stage_shapes(net: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes after the stem and each stage, batch axis left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, stage in enumerate(net.stages, start=1):
        name = f"layer{i}"
        stage.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:])))
    net.stem.register_forward_hook(lambda _, __, out: shapes.__setitem__("stem", tuple(out.shape[1:])))
    net(x)
    return shapes


def test_r2plus1d_18_has_the_parameters_of_the_paper() -> None:
    assert count(R2Plus1D()) == 31_300_125


def test_mid_channels_of_every_stage() -> None:
    widths = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert [mid_channels(i, o) for i, o in widths] == [144, 230, 288, 460, 576, 921, 1152]


def test_stage_shapes_of_the_card() -> None:
    with torch.device("meta"):  # shapes without arithmetic: the full 30x112x112 clip costs nothing
        net = R2Plus1D().eval()
        shapes = stage_shapes(net, torch.empty(1, 3, 30, 112, 112))
    assert shapes == {
        "stem": (64, 30, 56, 56),
        "layer1": (64, 30, 56, 56),
        "layer2": (128, 15, 28, 28),
        "layer3": (256, 8, 14, 14),
        "layer4": (512, 4, 7, 7),
    }


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "r2plus1d": lambda: R2Plus1D(8),
    "r2plus1d-gn": lambda: R2Plus1D(8, (1, 1), "gn", temporal_strides=(1, 1)),
    "factorised": lambda: FactorisedVideoNet(8, 4, 24),
    "factorised-gn": lambda: FactorisedVideoNet(8, 2, 24, blocks=(2, 1, 1), norm="gn"),
}


@pytest.fixture(params=list(MAKERS))
def net(request: pytest.FixtureRequest) -> nn.Module:
    with seeded_init(0):
        return MAKERS[request.param]()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 23), (7, 30, 31), (9, 33, 16)])
def test_odd_lengths_and_sizes(net: nn.Module, shape: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    net.eval()
    feature, grid = net(x), net.feature_map(x)
    assert feature.shape == (2, net.dim) and grid.shape[:2] == (2, net.dim) and grid.ndim == 5
    torch.testing.assert_close(feature, grid.mean((2, 3, 4)))
    assert feature.isfinite().all()


def test_temporal_strides_keep_the_resolution_in_time() -> None:
    net = R2Plus1D(8, (1, 1, 1, 1), temporal_strides=(1, 1, 1, 1)).eval()
    assert net.feature_map(torch.zeros(1, 3, 6, 32, 32)).shape == (1, 64, 6, 2, 2)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_seed_decides_the_weights_and_leaves_the_global_generator_alone(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    nets = []
    for seed in (1, 1, 2):
        with seeded_init(seed):
            nets.append(make())
    assert torch.equal(torch.rand(1), expected)
    first, second, other = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_state_dict_round_trip(make: Callable[[], nn.Module]) -> None:
    x = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    source, target = make().eval(), make().eval()
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(source(x), target(x))


def test_kaiming_uses_fan_out() -> None:
    conv = nn.Conv3d(4, 256, (1, 3, 3))
    kaiming_fan_out_(conv)
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.05)
    assert conv.bias is not None and not conv.bias.any()


def test_group_norm_divides_the_odd_widths() -> None:
    groups = {channels: make_norm("gn", channels, axes=3).num_groups for channels in (45, 64, 230, 921, 7)}
    assert groups == {45: 15, 64: 32, 230: 23, 921: 3, 7: 7}
    with pytest.raises(ValueError, match=r"'ln'.*'bn'"):
        make_norm("ln", 8, axes=2)  # type: ignore[arg-type]


def test_wrong_input_is_named(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"\(2, 8, 3, 16, 16\)"):
        net(torch.zeros(2, 8, 3, 16, 16))
    with pytest.raises(ValueError, match="uint8"):
        net(torch.zeros(2, 3, 8, 16, 16, dtype=torch.uint8))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        R2Plus1D(8, (2, 2))
    with pytest.raises(ValueError, match="stem_stride=0"):
        FactorisedVideoNet(8, 0)
    with pytest.raises(ValueError, match=r"blocks=\(1, 0\)"):
        FactorisedVideoNet(8, blocks=(1, 0))


def randomise_(net: nn.Module, seed: int) -> None:
    """Weights and running statistics away from their defaults, so that a swapped tensor is seen."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if "running_var" in key else (noise - 0.4) * (1 if value.ndim == 1 else 0.2))


def tiny_torchvision() -> VideoResNet:
    return VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [1, 2, 1, 1], R2Plus1dStem, num_classes=5)


@pytest.mark.parametrize(
    ("reference", "make"),
    [(tiny_torchvision, lambda: R2Plus1D(64, (1, 2, 1, 1))), (r2plus1d_18, R2Plus1D)],
    ids=["tiny", "full"],
)
def test_agrees_with_torchvision_at_random_weights(
    reference: Callable[[], VideoResNet], make: Callable[[], R2Plus1D]
) -> None:
    theirs = reference().eval()
    randomise_(theirs, 0)
    net = load_torchvision_r2plus1d(theirs.state_dict(), make())
    theirs.fc = nn.Identity()
    x = torch.randn(1, 3, 5, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(x), net(x)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_torchvision_key_map_is_one_to_one() -> None:
    with torch.device("meta"):
        theirs = set(r2plus1d_18().state_dict()) - {"fc.weight", "fc.bias"}
        mapping = r2plus1d_key_map(R2Plus1D())
    assert len(set(mapping.values())) == len(mapping) and set(mapping.values()) == theirs


def reference_factorised(net: FactorisedVideoNet, x: Tensor) -> Tensor:
    """The same network written with conv3d on (B, C, T, H, W), nothing merged."""

    def norm(layer: nn.BatchNorm2d, y: Tensor) -> Tensor:
        return F.batch_norm(y, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)

    def temporal(block: nn.Module, y: Tensor) -> Tensor:
        out = F.conv3d(y, block.conv.weight.unsqueeze(-1), stride=(block.conv.stride[0], 1, 1), padding=(1, 0, 0))
        return F.relu(norm(block.norm, out) + (y if block.residual else 0))

    y = F.relu(norm(net.stem_norm, net.stem(x)))
    for stage in net.stages:
        for conv in stage.spatial:
            stride = (1, *conv.conv.stride)
            out = norm(conv.norm, F.conv3d(y, conv.conv.weight.unsqueeze(2), stride=stride, padding=(0, 1, 1)))
            y = F.relu(out + (y if conv.residual else 0))
        y = temporal(stage.temporal, y)
    return temporal(net.final, y)


@pytest.mark.parametrize("blocks", [(1, 2, 1), (0, 1, 1), (1,)])
def test_factorised_equals_conv3d_in_value_and_gradient(blocks: tuple[int, ...]) -> None:
    net = FactorisedVideoNet(6, 4, 20, blocks=blocks).double()
    randomise_(net, 0)
    net.eval()
    x = torch.randn(2, 3, 5, 32, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [net.feature_map(inputs[0]), reference_factorised(net, inputs[1])]
    torch.testing.assert_close(outputs[0], outputs[1])
    weights = torch.randn(outputs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for out in outputs:
        (out * weights).sum().backward()
    assert inputs[0].grad is not None and inputs[0].grad.abs().max() > 0
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_factorised_clips_do_not_mix() -> None:
    net = FactorisedVideoNet(8, 4, 24).eval()
    x = torch.randn(3, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


def test_factorised_pads_what_the_patches_do_not_cover() -> None:
    net = FactorisedVideoNet(8, 4, 24).eval()
    x = torch.randn(1, 3, 4, 18, 17, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), net(F.pad(x, (0, 3, 0, 2))))


def test_every_parameter_gets_a_gradient_and_order_in_time_matters(net: nn.Module) -> None:
    x = torch.randn(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    net(x).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    net.eval()
    assert (net(x) - net(x.flip(2))).abs().max() > 1e-3
