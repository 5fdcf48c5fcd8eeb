"""Networks on compressed clips: sizes of the paper's tables, who hears whom, gates, heads, and what a pass costs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders import (
    COVIAR_WEIGHTS,
    LATERAL_DEPTHS,
    CTPHead,
    IMRNet,
    LateFusion,
    LateralGate,
    PMSPHead,
    ProjectionHead,
    ResNet3D,
    StreamMaps,
    count_macs,
    seeded_init,
)
from avssl_core.losses import pmsp_labels

CLIP = (5, 25, 224)  # I-frames, P-frames, side
TINY = {"width": 16, "gamma": 4, "kappa": 2}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def full(depth: int = 18, **options: object) -> IMRNet:
    with torch.device("meta"):  # shapes without arithmetic
        return IMRNet(depth, **options)


def meta_streams(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    i, p, side = CLIP
    return tuple(
        torch.empty(batch, c, t, side, side, device="meta", dtype=torch.float32) for c, t in ((3, i), (2, p), (3, p))
    )


def streams(batch: int = 3, gops: int = 3, kappa: int = 2, side: tuple[int, int] = (32, 32), *, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, gops), (2, kappa * gops), (3, kappa * gops))
    return tuple(torch.randn(batch, c, t, *side, generator=generator) for c, t in shapes)


def tiny(depth: int = 18, **options: object) -> IMRNet:
    with seeded_init(0):
        return IMRNet(depth, **{**TINY, **options})


# --- sizes ---------------------------------------------------------------------------------------------------------

TABLE = {  # (I channels, M and R channels, side) behind pool1 and each stage; table 2.1
    18: [(64, 8, 56), (64, 4, 56), (128, 8, 28), (256, 16, 14), (512, 32, 7)],
    50: [(64, 8, 56), (256, 16, 56), (512, 32, 28), (1024, 64, 14), (2048, 128, 7)],
}


@pytest.mark.parametrize("connections", ["none", "bidirectional"])
@pytest.mark.parametrize("depth", [18, 50])
def test_shapes_of_table_2_1(depth: int, connections: str) -> None:
    net = full(depth, connections=connections)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name in ("iframes", "motion", "residual"):
        pathway = getattr(net, name)
        kept = shapes.setdefault(name, [])
        for module in (pathway.stem, *pathway.stages):
            module.register_forward_hook(lambda _, __, out, kept=kept: kept.append(tuple(out.shape[1:])))
        halves = pathway.stem.conv
        halves.register_forward_hook(lambda _, __, out, kept=kept: kept.append(tuple(out.shape[1:])))
    assert net(*meta_streams(2)).shape == (2, net.dim)
    assert shapes["iframes"] == [(64, 5, 112, 112)] + [(i, 5, s, s) for i, _, s in TABLE[depth]]
    for name in ("motion", "residual"):
        assert shapes[name] == [(8, 25, 112, 112)] + [(p, 25, s, s) for _, p, s in TABLE[depth]]


@pytest.mark.parametrize(("depth", "dim", "wide", "narrow"), [(18, 576, 512, 32), (50, 2304, 2048, 128)])
def test_embedding_is_the_pooled_maps(depth: int, dim: int, wide: int, narrow: int) -> None:
    net = full(depth)
    maps = net.feature_maps(*meta_streams())
    assert net.dim == dim and maps.pooled().shape == (1, dim)
    assert maps.iframes.shape == (1, wide, 5, 7, 7)
    assert maps.motion.shape == maps.residual.shape == (1, narrow, 25, 7, 7)


def test_parameters_of_the_pathways() -> None:
    net = full(connections="none")
    assert count(net.iframes) == 20_023_872
    assert (count(net.motion), count(net.residual)) == (85_448, 87_408)
    assert count(net) == sum(count(x) for x in (net.iframes, net.motion, net.residual))  # inputs: nothing to learn


def test_temporal_kernels_of_table_2_1() -> None:
    def kernels(pathway: ResNet3D) -> list[tuple[int, ...]]:
        convs = [[m for m in stage.modules() if isinstance(m, nn.Conv3d)] for stage in pathway.stages]
        first = [[m for name, m in stage.named_modules() if name.endswith("conv1")] for stage in pathway.stages]
        assert all(m.kernel_size[0] == 1 for c, f in zip(convs, first, strict=True) for m in set(c) - set(f))
        return [{m.kernel_size[0] for m in stage} for stage in first]

    for depth in (18, 50):
        net = full(depth)
        assert kernels(net.iframes) == [{1}, {1}, {3}, {3}]
        assert kernels(net.motion) == kernels(net.residual) == [{3}] * 4
        assert net.iframes.stem.conv.kernel_size == (1, 7, 7) and net.iframes.stem.pool.kernel_size == (1, 3, 3)
        assert net.motion.stem.conv.kernel_size == (5, 7, 7)
        x = torch.randn(2, 8, 25, 9, 9, generator=torch.Generator().manual_seed(depth))
        assert torch.equal(net.motion.stem.pool(x), F.max_pool3d(x, (5, 3, 3), (1, 2, 2), (2, 1, 1)))
        assert all(m.stride[0] == 1 for m in net.iframes.modules() if isinstance(m, nn.Conv3d))


def sent(net: IMRNet, stream: str = "motion") -> list[tuple[int, int]]:
    links = [net.links[f"{name}_{stream}"] for name in LATERAL_DEPTHS]
    return [(link.to_iframes_channels, link.to_predicted_channels) for link in links]


def test_channels_sent() -> None:
    table = [(4, 8), (4, 8), (8, 16), (16, 32)]
    assert sent(full()) == sent(full(), "residual") == sent(full(motion_stem="ratio")) == table
    assert sent(full(lateral_scale="output")) == table
    assert sent(full(50)) == table
    assert sent(full(50, lateral_scale="output")) == [(4, 8), (16, 32), (32, 64), (64, 128)]
    assert sent(full(connections="unidirectional")) == [(c, 0) for c, _ in table]
    assert sent(full(resampling="interpolate")) == [(8, 64), (4, 64), (8, 128), (16, 256)]
    assert full(motion_stem="ratio").motion.channels == (4, 4, 8, 16, 32)


def test_kernels_of_the_connections() -> None:
    for link in full().links.values():
        assert isinstance(link.down, nn.Conv3d) and isinstance(link.up, nn.ConvTranspose3d)
        for conv in (link.down, link.up):
            assert conv.kernel_size == conv.stride == (5, 1, 1)


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet3d_alone(depth: int) -> None:
    with seeded_init(0):
        net = ResNet3D((4, 8, 8, 16), (1, 3, 1, 3), depth, in_channels=2, norm="gn").eval()
    x = torch.randn(2, 2, 4, 33, 50, generator=torch.Generator().manual_seed(0))
    grid = net.feature_map(x)
    assert grid.shape == (2, net.dim, 4, 2, 2) and net.dim == net.channels[-1] == (16 if depth == 18 else 64)
    torch.testing.assert_close(net(x), grid.mean(dim=(2, 3, 4)))
    assert grid.min() >= 0


def test_kernels_of_one_frame_keep_frames_apart() -> None:
    with seeded_init(0):
        apart, mixed = (ResNet3D((4, 4, 4, 4), kernels).eval() for kernels in ((1, 1, 1, 1), (1, 1, 1, 3)))
    x = torch.randn(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 2] += 1
    for net, touched in ((apart, [2]), (mixed, [0, 1, 2, 3, 4])):  # res5 has two blocks: one frame further in each
        differs = (net.feature_map(x) != net.feature_map(changed)).any(dim=1).flatten(2).any(dim=-1)[0]
        assert differs.nonzero().flatten().tolist() == touched


# --- who hears whom ------------------------------------------------------------------------------------------------


def differences(net: IMRNet, stream: int) -> list[bool]:
    """Which of the three maps change when one stream does."""
    net.eval()
    before = streams()
    after = list(before)
    after[stream] = streams(seed=1)[stream]
    pairs = [net.feature_maps(*before), net.feature_maps(*after)]
    return [not torch.equal(*(getattr(m, name) for m in pairs)) for name in ("iframes", "motion", "residual")]


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ({"connections": "none"}, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ({"connections": "unidirectional"}, [[1, 0, 0], [1, 1, 0], [1, 0, 1]]),
        ({"connections": "bidirectional"}, [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        ({"connections": "unidirectional", "gated": False}, [[1, 0, 0], [1, 1, 0], [1, 0, 1]]),
        ({"connections": "unidirectional", "resampling": "interpolate"}, [[1, 0, 0], [1, 1, 0], [1, 0, 1]]),
    ],
)
@pytest.mark.parametrize("depth", [18, 50])
def test_who_hears_whom(depth: int, options: dict[str, object], heard: list[list[int]]) -> None:
    """Rows: the stream that changes; columns: the maps that do. M and R meet only through I."""
    net = tiny(depth, **options)
    assert [differences(net, stream) for stream in range(3)] == [[bool(x) for x in row] for row in heard]


ABLATIONS: dict[str, dict[str, object]] = {
    "none": {"connections": "none"},
    "unidirectional": {"connections": "unidirectional"},
    "no-conv": {"resampling": "interpolate"},
    "no-gate": {"gated": False},
    "full": {},
    "ratio-stem": {"motion_stem": "ratio"},
    "gn": {"norm": "gn", "input_norm": False},
    "no-conv-unidirectional": {"connections": "unidirectional", "resampling": "interpolate"},
}


@pytest.mark.parametrize("options", ABLATIONS.values(), ids=list(ABLATIONS))
@pytest.mark.parametrize("depth", [18, 50])
def test_gradients_reach_every_parameter(depth: int, options: dict[str, object]) -> None:
    net = tiny(depth, **options)
    weight = torch.randn(net.dim, generator=torch.Generator().manual_seed(1))
    (net(*streams(side=(64, 48))) @ weight).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("side", [(32, 32), (64, 64), (54, 70), (17, 40)])
def test_small_and_odd_pictures(side: tuple[int, int]) -> None:
    net = tiny().eval()
    maps = net.feature_maps(*streams(side=side))
    size = tuple(math.ceil(x / 32) for x in side)
    assert maps.iframes.shape == (3, 128, 3, *size) and maps.motion.shape == maps.residual.shape == (3, 32, 6, *size)
    assert maps.pooled().isfinite().all()
    torch.testing.assert_close(net(*streams(side=side)), maps.pooled())


def test_motion_and_residuals_are_standardised_in_training() -> None:
    """Unit or scale of the vectors does not matter to a freshly built network."""
    net = tiny(norm="gn")
    i, m, r = streams()
    torch.testing.assert_close(net(i, m, r), net(i, 20 * m + 3, r / 7 - 1), atol=1e-4, rtol=1e-3)
    bare = tiny(norm="gn", input_norm=False)
    assert (bare(i, m, r) - bare(i, m + 3, r)).abs().max() > 1e-2


def test_seed_decides_the_weights() -> None:
    first, second = (torch.cat([p.flatten() for p in tiny().parameters()]) for _ in range(2))
    assert torch.equal(first, second)


def test_wrong_streams_are_named() -> None:
    net = tiny()
    i, m, r = streams()
    with pytest.raises(ValueError, match=r"motion vectors \(3, C, 6, 32, 32\).*2 P-frames.*\(3, 2, 5, 32, 32\)"):
        net(i, m[:, :, :5], r)
    with pytest.raises(ValueError, match=r"residuals .*\(3, 3, 6, 16, 16\)"):
        net(i, m, r[..., ::2, ::2])
    with pytest.raises(ValueError, match=r"motion .*\(2, 2, 6, 32, 32\)"):
        net(i, m[:2], r)
    with pytest.raises(ValueError, match=r"motion vectors.*2 channel.*\(3, 3, 6, 32, 32\)"):
        net(i, r, r)
    with pytest.raises(ValueError, match="uint8"):
        net(i.byte(), m, r)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="got 10, 4 and 5"):
        IMRNet(width=10, gamma=4)
    for name in ("connections", "resampling", "motion_stem", "lateral_scale"):
        with pytest.raises(ValueError, match=f"unknown {name} 'both'"):
            IMRNet(**{**TINY, name: "both"})
    with pytest.raises(ValueError, match="34"):
        ResNet3D(depth=34)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(8, 8, 8\)"):
        ResNet3D((8, 8, 8))
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 3\)"):
        ResNet3D((8, 8, 8, 8), (1, 1, 2, 3))
    with pytest.raises(ValueError, match=r"\(0, 1, 0, 0\)"):
        ResNet3D((4, 4, 4, 4), extra_channels=(0, 1, 0, 0)).feature_map(torch.zeros(1, 3, 2, 16, 16))
    with pytest.raises(ValueError, match=r"\(8, 0, 2, 2, 5\)"):
        LateralGate(8, 0, 2, 2)


# --- gates ---------------------------------------------------------------------------------------------------------


def maps(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 16, 3, 4, 5, generator=generator), torch.rand(2, 6, 15, 4, 5, generator=generator)


def gate(**options: object) -> LateralGate:
    with seeded_init(0):
        return LateralGate(16, 6, 4, 2, **options)


def test_gate_by_hand() -> None:
    """Eqs. 2.1 and 2.2 written out: frame k of a GOP has its own slice of each kernel."""
    link = gate()
    x_i, x_m = maps()
    z = torch.cat([x_i.flatten(2).max(dim=2)[0], x_m.flatten(2).max(dim=2)[0]], dim=1)
    g = link.gate
    h = nn.LeakyReLU()(g.hidden2(nn.LeakyReLU()(g.hidden1(z))))
    a_i, a_m = torch.sigmoid(g.iframes(h)), torch.sigmoid(g.predicted(h))
    down, up = link.down.weight[..., 0, 0], link.up.weight[..., 0, 0]  # (4, 6, 5) and (16, 2, 5)
    found = link(x_i, x_m)
    to_i = torch.einsum("bctkhw,ock->bothw", x_m.unflatten(2, (3, 5)), down)
    torch.testing.assert_close(found.to_iframes, a_i[:, :, None, None, None] * to_i)
    to_m = torch.einsum("bcthw,cok->botkhw", x_i, up).flatten(2, 3)
    torch.testing.assert_close(found.to_predicted, a_m[:, :, None, None, None] * to_m)
    torch.testing.assert_close(found.gate_iframes, a_i)
    torch.testing.assert_close(found.gate_predicted, a_m)
    assert g.hidden1.weight.shape == g.hidden2.weight.shape == (22, 22)


@pytest.mark.parametrize("resampling", ["conv", "interpolate"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_an_open_gate_is_no_gate(resampling: str, bidirectional: bool) -> None:
    options = {"resampling": resampling, "bidirectional": bidirectional}
    gated, plain = gate(**options), gate(gated=False, **options)
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate.")})
    found, expected = gated(*maps()), plain(*maps())
    assert not torch.equal(found.to_iframes, expected.to_iframes)
    with torch.no_grad():
        gated.gate.iframes.bias.fill_(1000.0)
        if bidirectional:
            gated.gate.predicted.bias.fill_(1000.0)
    found = gated(*maps())
    assert torch.equal(found.to_iframes, expected.to_iframes)
    assert expected.gate_iframes is None and expected.gate_predicted is None
    if bidirectional:
        assert torch.equal(found.to_predicted, expected.to_predicted)
    else:
        assert found.to_predicted is None and expected.to_predicted is None


def test_interpolation_is_the_mean_and_repetition() -> None:
    x_i, x_m = maps()
    found = gate(resampling="interpolate", gated=False)(x_i, x_m)
    torch.testing.assert_close(found.to_iframes, x_m.unflatten(2, (3, 5)).mean(dim=3))
    assert torch.equal(found.to_predicted, x_i.repeat_interleave(5, dim=2))


def test_a_gop_hears_only_its_own_frames() -> None:
    link = gate(gated=False)
    x_i, x_m = maps()
    changed = x_m.clone()
    changed[:, :, 7] += 1  # of GOP 1
    differs = (link(x_i, x_m).to_iframes != link(x_i, changed).to_iframes).any(dim=1).flatten(2).any(dim=-1)
    assert differs.tolist() == [[False, True, False]] * 2


def test_gates_of_the_network() -> None:
    net = tiny().eval()
    found = net.gates(*streams())
    assert list(found) == [f"{depth}_{stream}" for depth in LATERAL_DEPTHS for stream in ("motion", "residual")]
    for name, (to_iframes, to_predicted) in found.items():
        link = net.links[name]
        assert to_iframes.shape == (3, link.to_iframes_channels)
        assert to_predicted.shape == (3, link.to_predicted_channels)
        for each in (to_iframes, to_predicted):
            assert each.min() > 0 and each.max() < 1
            assert each.std(dim=0).min() > 0  # a clip decides
    one_way = tiny(connections="unidirectional").gates(*streams())
    assert len(one_way) == 8 and all(predicted is None for _, predicted in one_way.values())
    assert tiny(connections="none").gates(*streams()) == tiny(gated=False).gates(*streams()) == {}


def test_wrong_maps_are_named() -> None:
    x_i, x_m = maps()
    with pytest.raises(ValueError, match=r"5 \* T.*\(2, 6, 14, 4, 5\)"):
        gate()(x_i, x_m[:, :, :14])
    with pytest.raises(ValueError, match=r"\(2, 6, 15, 4, 4\)"):
        gate()(x_i, x_m[..., :4])


# --- heads and late fusion -----------------------------------------------------------------------------------------


def random_maps(gops: int = 5, side: int = 2, *, seed: int = 0) -> StreamMaps:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, gops), (2, 2 * gops), (2, 2 * gops))
    return StreamMaps(*(torch.rand(3, c, t, side, side, generator=generator) for c, t in shapes))


def test_pmsp_head_has_the_levels_of_the_labels() -> None:
    head = PMSPHead(10, 8)
    labels = pmsp_labels(torch.randn(3, 2, 60, 12, 12), 5, 12, operator="literal", signed=True, padding="zero")
    logits = head(random_maps())
    assert len(head.classifiers) == 9 and tuple(logits) == head.levels == labels.levels
    assert all(x.shape == (*labels.labels[s, t].shape, s * s) for (s, t), x in logits.items())


def test_pmsp_head_by_hand() -> None:
    head = PMSPHead(10, 8, spatial=(2, 4), temporal=(1, 3))
    maps = random_maps(side=4)
    logits = head(maps)
    for q in range(3):  # GOPs q, q + 1, q + 2; two P-frames each
        parts = [maps.iframes[:, :, q : q + 3], maps.motion[:, :, 2 * q : 2 * q + 6]]
        x = torch.cat([p.mean(dim=2) for p in (*parts, maps.residual[:, :, 2 * q : 2 * q + 6])], dim=1)
        torch.testing.assert_close(logits[4, 3][:, q], head.classifiers["s4t3"](x.flatten(1)))
        cells = x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
        torch.testing.assert_close(logits[2, 3][:, q], head.classifiers["s2t3"](cells.flatten(1)))


def test_fresh_heads_are_undecided() -> None:
    with seeded_init(0):
        pmsp, ctp = PMSPHead(10), CTPHead(10)
    for (s, _), x in pmsp(random_maps()).items():
        loss = nn.functional.cross_entropy(x.flatten(0, 1), torch.arange(x.shape[0] * x.shape[1]) % (s * s))
        assert loss.item() == pytest.approx(math.log(s * s), abs=0.1)
    scores = ctp(random_maps().pooled())
    assert scores.shape == (3, 4)
    assert nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(4), abs=0.2)
    assert CTPHead(10, num_types=2)(random_maps().pooled()).shape == (3, 2)


def test_wrong_maps_for_a_head_are_named() -> None:
    with pytest.raises(ValueError, match="12 channels together, got 10"):
        PMSPHead(12)(random_maps())
    with pytest.raises(ValueError, match="5 windows need at least 5 GOPs, got 3"):
        PMSPHead(10)(random_maps(gops=3))
    uneven = random_maps()
    with pytest.raises(ValueError, match=r"\[5, 9, 10\]"):
        PMSPHead(10)(StreamMaps(uneven.iframes, uneven.motion[:, :, :9], uneven.residual))
    with pytest.raises(ValueError, match=r"temporal=\(1, 0\)"):
        PMSPHead(10, temporal=(1, 0))
    with pytest.raises(ValueError, match="10, 0 and 4"):
        CTPHead(10, 0)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), COVIAR_WEIGHTS])
def test_late_fusion_is_a_linear_map_of_the_concatenation(weights: tuple[float, float, float]) -> None:
    net = LateFusion(7, tiny(connections="none"), weights=weights).eval()
    scores = net.stream_scores(*streams())
    assert scores.shape == (3, 3, 7)
    torch.testing.assert_close(net(*streams()), sum(w * s for w, s in zip(weights, scores, strict=True)))
    weight = torch.cat([w * f.weight for w, f in zip(weights, net.classifiers, strict=True)], dim=1)
    bias = sum(w * f.bias for w, f in zip(weights, net.classifiers, strict=True))
    torch.testing.assert_close(net(*streams()), nn.functional.linear(net.trunk(*streams()), weight, bias))


def test_late_fusion_wants_streams_that_never_meet() -> None:
    with pytest.raises(ValueError, match=r"8 connections.*connections='none'"):
        LateFusion(7, tiny())
    net = LateFusion(7, tiny(connections="none")).eval()
    other = streams(seed=1)
    before, after = net.stream_scores(*streams()), net.stream_scores(streams()[0], *other[1:])
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1:], after[1:])


# --- arithmetic ----------------------------------------------------------------------------------------------------


def test_macs_of_single_layers_by_hand() -> None:
    x = torch.empty(2, 3, 5, 8, 10, device="meta")
    assert count_macs(nn.Conv3d(3, 4, (3, 5, 1), (1, 2, 1), (1, 2, 0)), x) == 2 * (5 * 4 * 10) * 4 * (3 * 3 * 5)
    assert count_macs(nn.ConvTranspose3d(3, 4, (5, 1, 1), (5, 1, 1)), x) == 2 * (25 * 8 * 10) * 4 * 3
    assert count_macs(nn.Linear(10, 6), x) == 2 * 3 * 5 * 8 * 10 * 6
    assert count_macs(nn.Sequential(nn.BatchNorm3d(3), nn.ReLU(), nn.MaxPool3d(2)), x) == 0


def conv_macs(net: IMRNet, *inputs: Tensor) -> int:
    """Every output of every layer times the products behind it, from shapes alone."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose3d):
            total += inputs[0].numel() * module.weight[0].numel()
        else:
            total += out.numel() * module.weight[0].numel()

    layers = [m for m in net.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d | nn.Linear)]
    handles = [m.register_forward_hook(add) for m in layers]
    net.eval()(*inputs)
    for handle in handles:
        handle.remove()
    return total


# Multiply-accumulates of a clip of 25 network frames at 224 x 224. Table 2.3 prints 0.66 and 1.04 G "per frame".
MACS = {
    (18, "none"): 16_306_698_240,
    (18, "unidirectional"): 16_729_099_552,
    (18, "no-conv"): 19_606_885_728,
    (18, "no-gate"): 17_401_036_800,
    (18, "full"): 17_401_481_952,
    (18, "ratio-stem"): 15_792_084_416,
    (50, "none"): 30_319_851_520,
    (50, "unidirectional"): 30_561_960_384,
    (50, "no-conv"): 35_186_241_408,
    (50, "no-gate"): 31_714_744_320,
    (50, "full"): 31_721_118_528,
    (50, "ratio-stem"): 30_204_546_592,
}


@pytest.mark.parametrize(("depth", "name"), MACS)
def test_macs_of_the_ablations(depth: int, name: str) -> None:
    net = full(depth, **ABLATIONS[name])
    found = count_macs(net, *meta_streams())
    assert found == MACS[depth, name] == conv_macs(net, *meta_streams())


def test_macs_of_the_pathways_and_of_a_connection_by_hand() -> None:
    """12.5 G for I, 1.6 and 2.2 G for M and R; a gate costs next to nothing."""
    net = full(connections="none")
    parts = [count_macs(p, x) for p, x in zip((net.iframes, net.motion, net.residual), meta_streams(), strict=True)]
    assert parts == [12_535_971_840, 1_578_035_200, 2_192_691_200] and sum(parts) == MACS[18, "none"]
    link = full().links["res3_motion"]
    maps = torch.empty(1, 128, 5, 28, 28, device="meta"), torch.empty(1, 8, 25, 28, 28, device="meta")
    convs = (5 * 28 * 28) * 8 * (8 * 5) + (25 * 28 * 28) * 16 * 128
    assert count_macs(link, *maps) == convs + 2 * 136**2 + 136 * (8 + 16)


def test_real_and_meta_inputs_count_alike_and_nothing_is_changed() -> None:
    net = tiny()
    net.motion.eval()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    flags = [m.training for m in net.modules()]
    real = streams()
    found = count_macs(net, *real)
    assert found == count_macs(net, *(x.to("meta") for x in real)) > 0
    assert found * 2 == count_macs(net, *(x.repeat(2, 1, 1, 1, 1).to("meta") for x in real))
    assert [m.training for m in net.modules()] == flags and True in flags and False in flags
    assert all(torch.equal(x, before[name]) and not x.is_meta for name, x in net.state_dict().items())


def test_training_flags_return_even_when_the_pass_fails() -> None:
    head = ProjectionHead()
    with pytest.raises(ValueError, match="features"):
        count_macs(head, torch.zeros(1, 3))
    assert head.training and head.norm.training
    assert count_macs(head, torch.empty(1, 512, device="meta")) == 512 * 512 + 512 * 256  # a batch of 1, in training


def test_mixed_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['meta', 'cpu'\]"):
        count_macs(nn.Bilinear(2, 2, 2), torch.empty(1, 2, device="meta"), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"\[\]"):
        count_macs(nn.Identity())
