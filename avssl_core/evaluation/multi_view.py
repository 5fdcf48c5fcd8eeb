"""Many views of one video, one answer: the test protocol of action recognition ("10 clips, 3 crops").

Motionformer (Patrick et al., NeurIPS 2021, section 4): probabilities, not logits, are averaged over clips that are
spread over the video and crops along its longer side. With several classifiers (EPIC-Kitchens: verb and noun) each is
averaged by itself, and an action counts where all of them are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avssl_core.evaluation.features import evaluating
from avssl_core.training.steps import to_device


@torch.no_grad()
def multi_view_scores(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    clips: Callable[[Any], Tensor],
    crops: Sequence[Callable[[Tensor], Tensor]],
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Mean probabilities of every video over its views.

    Args:
        model: gives logits ``(B, C)``, or several by name.
        batches: of videos.
        clips: from a batch on the device to the clips of its videos, ``(B, K, 3, T, H, W)``.
        crops: each from clips ``(B * K, 3, T, H, W)`` to inputs of the model, e.g. ``ClipEval`` at three positions.
        device: where to compute; the model is not moved.

    Returns:
        Classifier → float32 ``(V, C)`` on the CPU, rows sum to 1, in the order of the batches; a lone classifier is
        called ``"class"``.

    Raises:
        ValueError: without batches or crops.
    """
    if not crops:
        raise ValueError("there are no crops: pass at least one, e.g. [ClipEval(224)]")
    found: dict[str, list[Tensor]] = {}
    with evaluating(model):
        for batch in batches:
            videos = clips(to_device(batch, torch.device(device)))
            said = [_by_name(model(crop(videos.flatten(0, 1)))) for crop in crops]
            for name in said[0]:
                views = torch.stack([logits[name].float().softmax(dim=1) for logits in said])  # (crops, B K, C)
                by_video = torch.unflatten(views, 1, (len(videos), -1))  # (crops, B, K, C)
                found.setdefault(name, []).append(by_video.mean(dim=(0, 2)).cpu())
    if not found:
        raise ValueError("there are no batches to score")
    return {name: torch.cat(parts) for name, parts in found.items()}


def joint_accuracy(scores: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> float:
    """Share of videos for which every classifier's best class is right: EPIC-Kitchens' *action* from verb and noun.

    Args:
        scores: classifier → ``(V, C)``.
        labels: classifier → class numbers ``(V,)``.

    Raises:
        ValueError: if the two do not name the same classifiers.
    """
    if set(scores) != set(labels) or not scores:
        raise ValueError(f"expected labels for {sorted(scores)}, got {sorted(labels)}")
    right = torch.stack([scores[name].argmax(dim=1).cpu() == labels[name].cpu() for name in scores])
    return float(right.all(dim=0).float().mean())


def _by_name(said: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {"class": said} if isinstance(said, Tensor) else said
