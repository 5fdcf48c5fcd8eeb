"""Many views, one answer: probabilities are averaged, each classifier by itself; actions need all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from avssl_core.evaluation import joint_accuracy, multi_view_scores


class Two(nn.Module):
    """A verb from the mean of the clip, a noun from its first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)  # off in evaluation

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        x, y = self.drop(clip).flatten(1).mean(1), clip.flatten(1)[:, 0]
        return {"verb": torch.stack([x, -x], 1), "noun": torch.stack([y, 0 * y, -y], 1)}


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 2, 3, 4, 5, 5, generator=generator) for n in (3, 2)]  # five videos of two clips


def test_probabilities_are_averaged_over_clips_and_crops() -> None:
    crops = [lambda clip: clip[..., :4, :4], lambda clip: clip[..., 1:, 1:]]
    scores = multi_view_scores(Two(), batches(), clips=lambda batch: batch, crops=crops)
    net, expected = Two().eval(), {"verb": [], "noun": []}
    for video in torch.cat(batches()):
        views = [net(crop(clip[None])) for clip in video for crop in crops]
        for name, found in expected.items():
            found.append(torch.stack([view[name].softmax(1)[0] for view in views]).mean(0))
    for name, found in expected.items():
        torch.testing.assert_close(scores[name], torch.stack(found))
        torch.testing.assert_close(scores[name].sum(1), torch.ones(5))


def test_a_lone_classifier_is_called_class() -> None:
    class One(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            return clip.flatten(1)[:, :3]

    scores = multi_view_scores(One(), batches(), clips=lambda batch: batch, crops=[lambda clip: clip])
    assert set(scores) == {"class"} and scores["class"].shape == (5, 3)


def test_an_action_is_right_where_verb_and_noun_are() -> None:
    scores = {"verb": torch.eye(2)[[0, 1, 0, 1]], "noun": torch.eye(3)[[0, 1, 2, 2]]}
    labels = {"verb": torch.tensor([0, 1, 1, 1]), "noun": torch.tensor([0, 2, 2, 2])}
    assert joint_accuracy(scores, labels) == 0.5


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="no crops"):
        multi_view_scores(Two(), batches(), clips=lambda batch: batch, crops=[])
    with pytest.raises(ValueError, match="no batches"):
        multi_view_scores(Two(), [], clips=lambda batch: batch, crops=[lambda clip: clip])
    with pytest.raises(ValueError, match="expected labels for"):
        joint_accuracy({"verb": torch.eye(2)}, {"noun": torch.zeros(2)})
