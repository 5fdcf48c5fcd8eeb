"""Feature extraction leaves the encoder as found; fine-tuning learns what frozen features cannot say."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avssl_core.encoders import FactorisedVideoNet, ResNet9Audio, seeded_init
from avssl_core.evaluation import (
    Classifier,
    FinetuneConfig,
    evaluating,
    extract_features,
    finetune,
    linear_probe,
    predict_videos,
    repeat_epochs,
    score_classifier,
    tensor_batches,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Noisy(nn.Module):
    """An encoder whose training mode shows: dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 6
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


# ---------------------------------------------------------------- features


def test_features_need_no_gradient_and_draw_nothing() -> None:
    net, x = Noisy(), normal(10, 4, seed=0)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = extract_features(net, x), extract_features(net, x, batch_size=3)
    assert torch.equal(torch.rand(1), expected)
    assert not first.requires_grad and first.shape == (10, 6)
    torch.testing.assert_close(first, second)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_modes_are_restored_one_by_one_even_after_an_error() -> None:
    net = Noisy().train()
    net.body[1].eval()  # a frozen batch norm inside a network in training
    before = [module.training for module in net.modules()]
    extract_features(net, normal(4, 4, seed=0))
    assert [module.training for module in net.modules()] == before
    with pytest.raises(RuntimeError):
        extract_features(net, normal(4, 5, seed=0))
    assert [module.training for module in net.modules()] == before
    with evaluating(net):
        assert not any(module.training for module in net.modules())


def test_any_iterable_of_batches_and_prepare() -> None:
    net, x = Noisy(), normal(10, 4, seed=0)
    expected = extract_features(net, x)
    torch.testing.assert_close(extract_features(net, iter(x.split(3))), expected)
    loader = torch.utils.data.DataLoader([{"frames": row, "row": i} for i, row in enumerate(x)], batch_size=4)
    torch.testing.assert_close(extract_features(net, loader, prepare=lambda batch: batch["frames"]), expected)
    with pytest.raises(ValueError, match=r"dict.*prepare="):
        extract_features(net, loader)
    with pytest.raises(ValueError, match="no batches"):
        extract_features(net, [])


def test_max_pooling_of_the_map() -> None:
    with seeded_init(0):
        net = FactorisedVideoNet(4, 4, 12)
    x = normal(3, 3, 4, 32, 32, seed=0)
    got = extract_features(net, x, pool="max", batch_size=2)
    with evaluating(net), torch.no_grad():
        torch.testing.assert_close(got, net.feature_map(x).amax((2, 3, 4)))
    assert (got >= extract_features(net, x)).all()
    with pytest.raises(ValueError, match="'sum'"):
        extract_features(net, x, pool="sum")  # type: ignore[arg-type]


# ---------------------------------------------------------------- batches


def test_tensor_batches_is_a_function_of_seed_and_step() -> None:
    x, y = torch.arange(10).float()[:, None], torch.arange(10)
    source = tensor_batches(x, y, batch_size=3, seed=0)
    whole = [tuple(labels.tolist()) for _, labels in islice(source(0), 9)]
    assert [tuple(labels.tolist()) for _, labels in islice(source(4), 5)] == whole[4:]
    for epoch in range(3):
        seen = [label for batch in whole[3 * epoch : 3 * epoch + 3] for label in batch]
        assert len(set(seen)) == 9  # full batches, no item twice an epoch
    assert whole[:3] != whole[3:6]
    assert all(torch.equal(inputs[:, 0].long(), labels) for inputs, labels in islice(source(0), 9))
    with pytest.raises(ValueError, match="10, 10, batch 11"):
        tensor_batches(x, y, batch_size=11, seed=0)


def test_repeat_epochs() -> None:
    assert list(islice(repeat_epochs([1, 2, 3])(0), 7)) == [1, 2, 3, 1, 2, 3, 1]
    assert list(islice(repeat_epochs([1, 2, 3])(4), 3)) == [2, 3, 1]
    with pytest.raises(ValueError, match="gave nothing"):
        list(islice(repeat_epochs(iter([1, 2]))(0), 5))


# ---------------------------------------------------------------- fine-tuning


def test_schedule_of_the_paper_in_steps() -> None:
    config = FinetuneConfig().to_fit(100)
    assert (config.steps, config.warmup_steps, config.milestone_steps) == (1200, 200, (600, 1000))
    assert config.lr * config.warmup_from == pytest.approx(2.5e-3) and config.gamma == 0.05
    assert FinetuneConfig(milestones="").to_fit(10).schedule == "constant"


def pitch_direction(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Spectrograms of one rising or falling line at a random height: the label is only in the order of time."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    starts = torch.randint(0, 8, (count,), generator=generator)
    x = 0.3 * torch.randn(count, 1, 24, 16, generator=generator)
    for i in range(count):
        steps = torch.arange(16)
        rows = starts[i] + (steps if labels[i] else 15 - steps)
        x[i, 0, rows, steps] += 2.0
    return x, labels


SMALL = FinetuneConfig(
    epochs=8, lr=1e-3, optimiser="adamw", weight_decay=1e-4, milestones="6", warmup_epochs=1, backbone_lr_scale=1.0
)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    with seeded_init(0):
        return ResNet9Audio(4)


def test_supervised_ceiling_beats_a_probe_of_random_features(encoder: nn.Module) -> None:
    (train_x, train_y), (test_x, test_y) = pitch_direction(256, 0), pitch_direction(200, 1)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    source = tensor_batches(train_x, train_y, batch_size=32, seed=0)
    model, result = finetune(encoder, source, num_classes=2, steps_per_epoch=8, config=SMALL)
    score = score_classifier(model, test_x, test_y)
    probe = linear_probe(extract_features(encoder, train_x), train_y, extract_features(encoder, test_x), test_y)
    assert score.accuracy > 0.95 and score.accuracy > probe.accuracy + 0.02
    assert result.steps == 64 and not model.training and len(result.history) == 8
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_same_seed_same_weights_and_shuffled_labels_give_chance(encoder: nn.Module) -> None:
    train_x, train_y = pitch_direction(64, 0)
    config = FinetuneConfig(epochs=1, lr=1e-2, milestones="", warmup_epochs=0)

    def run(seed: int) -> Tensor:
        batches = list(zip(train_x.split(16), train_y.split(16), strict=True))
        config_of_seed = FinetuneConfig(**{**vars(config), "seed": seed})
        model, _ = finetune(encoder, batches, num_classes=2, steps_per_epoch=4, config=config_of_seed)
        return model.head.weight.detach()

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_backbone_moves_slower_than_the_head(encoder: nn.Module) -> None:
    x, y = pitch_direction(32, 0)
    moved = {}
    for scale in (0.0, 0.1, 1.0):
        config = FinetuneConfig(epochs=1, lr=1e-2, milestones="", warmup_epochs=0, backbone_lr_scale=scale)
        model, _ = finetune(encoder, [(x, y)], num_classes=2, steps_per_epoch=1, config=config)
        moved[scale] = (model.encoder.stem.weight - encoder.stem.weight).norm().item()
    assert moved[0.0] == 0 < moved[0.1] and moved[1.0] == pytest.approx(10 * moved[0.1], rel=1e-3)


def test_prepare_gets_a_seeded_generator(encoder: nn.Module) -> None:
    x, y = pitch_direction(16, 0)
    draws: list[float] = []

    def prepare(batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draws.append(float(torch.rand(1, generator=generator)))
        return batch["spectrogram"], batch["label"]

    for _ in range(2):
        config = FinetuneConfig(epochs=2, milestones="", warmup_epochs=0)
        finetune(
            encoder,
            [{"spectrogram": x, "label": y}],
            num_classes=2,
            steps_per_epoch=1,
            config=config,
            prepare=prepare,
        )
    assert draws[:2] == draws[2:] and draws[0] != draws[1]


def test_a_finished_run_is_taken_up(encoder: nn.Module, tmp_path: Path) -> None:
    x, y = pitch_direction(16, 0)
    config = FinetuneConfig(epochs=2, milestones="", warmup_epochs=0)
    runs = [
        finetune(encoder, [(x, y)], num_classes=2, steps_per_epoch=1, config=config, run_dir=str(tmp_path / "run"))
        for _ in range(2)
    ]
    assert runs[1][1].resumed_from == 2
    assert torch.equal(runs[0][0].head.weight, runs[1][0].head.weight)


def test_bad_labels_are_named(encoder: nn.Module) -> None:
    x, y = pitch_direction(16, 0)
    config = FinetuneConfig(epochs=1, milestones="", warmup_epochs=0)
    with pytest.raises(ValueError, match=r"\[0, 2\), got 0 to 5"):
        finetune(encoder, [(x, y * 5)], num_classes=2, steps_per_epoch=1, config=config)
    with pytest.raises(ValueError, match="float32"):
        finetune(encoder, [(x, y.float())], num_classes=2, steps_per_epoch=1, config=config)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        finetune(encoder, [(x, y)], num_classes=1, steps_per_epoch=1, config=config)


def test_clips_of_a_video_are_averaged_as_text_and_as_release() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    # One very confident clip for class 1, two mildly confident ones for class 0.
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 9.0]])
    assert predict_videos(Given(), logits, clips_per_video=3).tolist() == [0]
    assert predict_videos(Given(), logits, clips_per_video=3, average="logit").tolist() == [1]
    assert predict_videos(Given(), logits).tolist() == [0, 0, 1]
    assert score_classifier(Given(), logits, [0, 0, 0]).accuracy == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="3 clips do not divide into videos of 2"):
        predict_videos(Given(), logits, clips_per_video=2)
    with pytest.raises(ValueError, match="'max'"):
        predict_videos(Given(), logits, average="max")  # type: ignore[arg-type]


def test_head_starts_orthogonal_from_the_seed() -> None:
    model = Classifier(Noisy(), 3, seed=1)
    torch.testing.assert_close(model.head.weight @ model.head.weight.T, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.equal(model.head.weight, Classifier(Noisy(), 3, seed=1).head.weight)
    assert not model.head.bias.any()
