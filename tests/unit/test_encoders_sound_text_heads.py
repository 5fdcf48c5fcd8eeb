"""Spectrogram ResNets, the text encoder, projection heads and the two-tower model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from avssl_core.encoders import (
    AudioVisualModel,
    BagOfWordsText,
    FactorisedVideoNet,
    ProjectionHead,
    ResNet9Audio,
    SpectrogramResNet,
    Tower,
    full_gdt,
    random_word_table,
    small,
)
from avssl_core.encoders.checkpoints import RESNET_RULES, load_mapped, source_key


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_resnet9_has_the_parameters_of_the_card() -> None:
    assert count(ResNet9Audio()) == 4_899_520  # "4.90 M without classifier"


def test_resnet9_stage_shapes_of_the_card() -> None:
    with torch.device("meta"):
        net = ResNet9Audio().eval()
        shapes: list[tuple[int, ...]] = []
        for layer in (net.stem, net.pool, *net.stages):
            layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        assert net(torch.empty(1, 1, 40, 99)).shape == (1, 512)
    assert shapes == [(64, 20, 50), (64, 10, 25), (64, 10, 25), (128, 5, 13), (256, 3, 7), (512, 2, 4)]


@pytest.mark.parametrize("shape", [(1, 1), (40, 7), (33, 100)])
@pytest.mark.parametrize("max_pool", [True, False])
def test_odd_spectrograms(shape: tuple[int, int], max_pool: bool) -> None:
    net = SpectrogramResNet(8, (2, 1, 1), "gn", max_pool=max_pool).eval()
    x = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    assert net(x).shape == (2, net.dim) == (2, 32)
    torch.testing.assert_close(net(x), net.feature_map(x).mean((2, 3)))


def test_resnet18_trunk_agrees_with_torchvision() -> None:
    theirs = ResNet(BasicBlock, [2, 2, 2, 2]).eval()
    theirs.fc = nn.Identity()
    net = SpectrogramResNet(64, (2, 2, 2, 2), in_channels=3).eval()
    load_mapped(
        net, theirs.state_dict(), {key: source_key(key, RESNET_RULES) for key in net.state_dict()}, ignored=(), name="x"
    )
    x = torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_spectrogram_errors_show_what_came() -> None:
    with pytest.raises(ValueError, match=r"\(2, 40, 99\)"):
        ResNet9Audio(8)(torch.zeros(2, 40, 99))
    with pytest.raises(ValueError, match="at least 1"):
        SpectrogramResNet(8, (1, 0))


# ---------------------------------------------------------------- text


def words() -> torch.Tensor:
    return torch.tensor([[3, 7, 2, 9], [5, 1, 0, 0], [8, 0, 0, 0]])


def test_bag_of_words_by_hand() -> None:
    table = random_word_table(12, 6, seed=0)
    net = BagOfWordsText(table, dim=10)
    for row, out in zip(words(), net(words()), strict=True):
        expected = torch.zeros(10)
        for index in row.tolist():
            if index != 0:
                expected = torch.maximum(expected, net.linear.weight @ table[index] + net.linear.bias)
        torch.testing.assert_close(out, expected)


def test_bag_of_words_ignores_order_and_padding() -> None:
    net = BagOfWordsText(random_word_table(12, 6, seed=0), dim=10)
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        torch.testing.assert_close(net(words()[:, order]), net(words()), rtol=0, atol=1e-6)
    torch.testing.assert_close(net(F.pad(words(), (0, 5))), net(words()))


def test_positions_make_order_count() -> None:
    net = BagOfWordsText(random_word_table(12, 6, seed=0), dim=10, positions=4)
    assert (net(words()[:1].flip(1)) - net(words()[:1])).abs().max() > 1e-2


def test_word_vectors_are_frozen_and_the_default_width_is_the_paper_s() -> None:
    net = BagOfWordsText(random_word_table(12, seed=0))
    assert net.dim == 2048 and {name for name, _ in net.named_parameters()} == {"linear.weight", "linear.bias"}
    assert count(net) == 300 * 2048 + 2048
    clone = BagOfWordsText(random_word_table(12, seed=1))
    clone.load_state_dict(net.state_dict())
    assert torch.equal(clone(words()), net(words()))


def test_text_errors() -> None:
    table = random_word_table(12, 6, seed=0)
    with pytest.raises(ValueError, match="caption 1 has no words"):
        BagOfWordsText(table)(torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match="4 words, but positions=2"):
        BagOfWordsText(table, positions=2)(words())
    with pytest.raises(ValueError, match="float32"):
        BagOfWordsText(table)(words().float())
    with pytest.raises(ValueError, match="positions"):
        BagOfWordsText(table, positions=-1)
    with pytest.raises(ValueError, match="float matrix"):
        BagOfWordsText(table[0])


# ---------------------------------------------------------------- heads and towers


def test_head_as_released() -> None:
    head = ProjectionHead()
    assert [tuple(p.shape) for p in head.parameters()] == [(512, 512), (512,), (512,), (256, 512), (256,)]
    assert head.dropout.p == 0.3


def test_head_gives_unit_rows_and_drops_out_only_in_training() -> None:
    head = ProjectionHead(12, 10, 6)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(x).norm(dim=1), torch.ones(5))
    head.eval()
    assert torch.equal(head(x), head(x))
    raw = ProjectionHead(12, 10, 6, normalise=False).eval()
    raw.load_state_dict(head.state_dict())
    torch.testing.assert_close(F.normalize(raw(x), dim=1), head(x))


def test_dropout_applies_twice_with_rescaling() -> None:
    head = ProjectionHead(4000, 4000, 4, dropout=0.3)
    seen: list[torch.Tensor] = []
    for layer in (head.hidden, head.out):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head(torch.ones(2, 4000))
    kept = (seen[0] != 0).float().mean()
    assert kept == pytest.approx(0.7, abs=0.03) and seen[0].max() == pytest.approx(1 / 0.7)
    assert len(seen) == 2 and (seen[1] == 0).float().mean() > 0.3  # ReLU's zeros and dropout's


def test_unit_rows_are_float32_under_autocast() -> None:
    head = ProjectionHead(12, 10, 6, dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(torch.randn(8, 12, generator=torch.Generator().manual_seed(0)))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(8))


def test_head_refuses_a_batch_of_one_only_in_training() -> None:
    head = ProjectionHead(12, 10, 6)
    with pytest.raises(ValueError, match="batch of 1"):
        head(torch.zeros(1, 12))
    assert head.eval()(torch.zeros(1, 12)).shape == (1, 6)
    with pytest.raises(ValueError, match=r"\(3, 11\)"):
        head(torch.zeros(3, 11))
    with pytest.raises(ValueError, match=r"got 1\.0"):
        ProjectionHead(12, 10, 6, dropout=1.0)


def test_two_towers_embed_into_one_space() -> None:
    model = small(seed=0)
    z_v, z_a = model(torch.randn(3, 3, 4, 32, 32), torch.randn(5, 1, 40, 32))
    assert z_v.shape == (3, 64) and z_a.shape == (5, 64)
    assert (model.video.encoder.dim, model.audio.encoder.dim) == (256, 128)
    same, other = small(seed=0).state_dict(), small(seed=1).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in small(seed=0).state_dict().items())
    assert not torch.equal(same["video.encoder.stem.weight"], other["video.encoder.stem.weight"])


def test_full_gdt_is_full_size() -> None:
    with torch.device("meta"):
        model = full_gdt()
        heads = 512 * 512 + 2 * 512 + 512 * 256 + 256
        assert count(model) == 31_300_125 + 4_899_520 + 2 * heads == 36_988_637


def test_towers_that_do_not_fit_are_refused() -> None:
    encoder = FactorisedVideoNet(8, 4, 24)
    with pytest.raises(ValueError, match=r"24.*12"):
        Tower(encoder, ProjectionHead(12, 10, 6))
    with pytest.raises(ValueError, match=r"6.*8"):
        AudioVisualModel(encoder, ResNet9Audio(8), ProjectionHead(24, 10, 6), ProjectionHead(64, 10, 8))
