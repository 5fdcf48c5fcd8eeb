"""Extremal perturbations: of all smooth masks of a given area, the one that the network answers most to (eq. 2).

Fong, Patrick & Vedaldi, ICCV 2019, https://arxiv.org/abs/1910.08485. The parameters of smooth masks ascend the reward
minus a weight times the area regulariser; the weight grows until the area is as good as fixed.

The authors' release optimises the areas of one picture together. Energies of different masks do not touch, so here all
pictures and all areas are one batch, and each mask gets the numbers it would get alone if the network treats the
elements of a batch alike. What else differs: the mean of the regulariser may be taken over the visible part, a history
of the contrastive reward that is right for several areas, and no ties decided by rounding (see ``area_regulariser``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from avssl_core.attribution.area import CountRegulariser, Reduction, ones_of_areas
from avssl_core.attribution.networks import frozen
from avssl_core.attribution.perturbations import BlurPyramid, FadePyramid, Perturbation
from avssl_core.attribution.rewards import REWARDS, Scorer
from avssl_core.attribution.smooth_masks import SmoothMaskGenerator, SmoothMasks

Variant = Literal["preserve", "delete", "dual"]
AreaOn = Literal["canvas", "crop"]
AreaSchedule = Literal["geometric", "thirds"]


GRAPH_WARM_UP = 4  # iterations run one by one before any is recorded


@dataclass(frozen=True)
class ExtremalConfig:
    """How masks are optimised; defaults are the release's.

    Attributes:
        variant: maximise what is kept (``preserve``), minimise what is left (``delete``), or both (``dual``).
        reward: ``simple`` or ``contrastive``.
        iterations: 800 in the release, 1600 in the paper.
        area_weight: ``lambda`` at the start.
        area_growth: its factor an iteration, for the geometric schedule.
        area_schedule: ``geometric`` as released, or ``thirds``: doubled after each third, as printed (300, 600, 1200).
        area_reduction: ``mean`` as released, ``sum`` as printed.
        area_on: where area is measured: on the ``canvas`` as released, or on the ``crop`` that the network sees.
        jitter: mirror pictures in their last axis at every other iteration. Turn it off where that axis is time.
        learning_rate: of stochastic gradient ascent.
        momentum: weight of the earlier gradients.
        dampening: 0.9 makes the momentum an average of gradients; the first step is the raw gradient.
    """

    variant: Variant = "preserve"
    reward: Literal["simple", "contrastive"] = "simple"
    iterations: int = 800
    area_weight: float = 300.0
    area_growth: float = 1.0035
    area_schedule: AreaSchedule = "geometric"
    area_reduction: Reduction = "mean"
    area_on: AreaOn = "canvas"
    jitter: bool = True
    learning_rate: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown option or no iterations."""
        known = {
            "variant": ("preserve", "delete", "dual"),
            "reward": tuple(REWARDS),
            "area_on": ("canvas", "crop"),
            "area_reduction": ("mean", "sum"),
            "area_schedule": ("geometric", "thirds"),
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; use one of {choices}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")


@dataclass(frozen=True)
class ExtremalPerturbations:
    """What :func:`extremal_perturbation` found for ``B`` pictures and ``A`` areas over ``T`` iterations.

    Attributes:
        masks: as the network saw them in the last iteration, ``(B, A, 1, H, W)``, for clips ``(B, A, 1, T, H, W)``.
        canvases: the same with their margin.
        parameters: that drew these masks, ``(B, A, *nodes)``.
        rewards: averaged over places, before each step, ``(B, A, T)``.
        regularisers: ``-lambda R_a`` before each step, ``(B, A, T)``.
        preserved: score of the target for ``m (x) x``, ``(B, A)``.
        deleted: score of the target for ``(1 - m) (x) x``, ``(B, A)``.
        original: score of the target for the picture, ``(B,)``.
        perturbed: score of the target for the wholly perturbed picture, ``(B,)``.
    """

    masks: Tensor
    canvases: Tensor
    parameters: Tensor
    rewards: Tensor
    regularisers: Tensor
    preserved: Tensor
    deleted: Tensor
    original: Tensor
    perturbed: Tensor


def extremal_perturbation(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    areas: Sequence[float],
    *,
    perturbation: Literal["blur", "fade"] | Perturbation = "blur",
    generator: SmoothMaskGenerator | None = None,
    config: ExtremalConfig | None = None,
    start: Tensor | None = None,
    max_evaluations: int | None = None,
    autocast: torch.dtype | None = None,
    cuda_graph: bool = False,
    on_iteration: Callable[[int], None] | None = None,
    **options: object,
) -> ExtremalPerturbations:
    """Masks of each area that extremise the response to each target (eqs. 2 and 4).

    Args:
        model: takes what ``images`` is and returns scores ``(N, C)`` or maps of scores ``(N, C, h, w)``, before any
            softmax. Put in evaluation mode and frozen meanwhile, restored afterwards.
        images: ``(B, C, H, W)``, spectrograms ``(B, 1, F, T)``, or clips ``(B, C, T, H, W)``, normalised for the model.
        targets: class of each picture, ``(B,)``.
        areas: shares kept (removed, for deletion), each in [0, 1].
        perturbation: by name with the release's settings, or one made for these images.
        generator: of masks of the images' size; the release's settings if ``None``, for clips with a bell over time as
            wide as over space, which is too wide for most: give one.
        config: see :class:`ExtremalConfig`; its fields can also be given one by one as ``options``.
        start: parameters to begin with, ``(B, A, *nodes)``; all ones if ``None``.
        max_evaluations: pictures that the network sees at a time, to bound memory; all if ``None``.
        autocast: compute the network in this type, e.g. ``torch.bfloat16``; masks stay in float32.
        cuda_graph: record an iteration once and replay it: on a GPU, launching is most of the time for small networks.
            The model must not wait for the device.
        on_iteration: called after each iteration with its number.

    Raises:
        ValueError: for shapes that do not fit together, targets the model has no scores for, or an unknown choice.
        TypeError: for an option that :class:`ExtremalConfig` does not have.
    """
    config = replace(config or ExtremalConfig(), **options)  # type: ignore[arg-type]
    classes = torch.as_tensor(targets, dtype=torch.long, device=images.device)
    if classes.shape != images.shape[:1]:
        raise ValueError(f"need a target for each of {len(images)} images, got {tuple(classes.shape)}")
    if not areas:
        raise ValueError("need at least one area, e.g. areas=[0.05, 0.1, 0.2]")
    if cuda_graph and not images.is_cuda:
        raise ValueError(f"cuda_graph=True needs images on a CUDA device, they are on {images.device}")
    generator = (generator or SmoothMaskGenerator(images.shape[2:])).to(images.device)
    operator = _operator(perturbation, images)
    network = Scorer(model, limit=max_evaluations, autocast=autocast)
    with frozen(model):
        original, perturbed = _reference_scores(network, operator, images, classes)
        ascent = _Ascent(network, operator, generator, config, areas, classes, _start(start, generator, images, areas))
        rewards, regularisers = (_replay if cuda_graph else _repeat)(ascent, config, on_iteration or (lambda t: None))
        masks, preserved, deleted = ascent.finish()

    def by_picture(x: Tensor) -> Tensor:
        return x.reshape(len(images), len(areas), *x.shape[1:])

    return ExtremalPerturbations(
        masks=by_picture(masks.crop),
        canvases=by_picture(masks.canvas),
        parameters=by_picture(ascent.drawn[:, 0]),
        rewards=by_picture(rewards),
        regularisers=by_picture(regularisers),
        preserved=by_picture(preserved),
        deleted=by_picture(deleted),
        original=original,
        perturbed=perturbed,
    )


class _Ascent:
    """Everything an iteration reads and writes, in place, so that a recorded one can be replayed."""

    def __init__(
        self,
        network: Scorer,
        operator: Perturbation,
        generator: SmoothMaskGenerator,
        config: ExtremalConfig,
        areas: Sequence[float],
        targets: Tensor,
        start: Tensor,
    ) -> None:
        self.network, self.operator, self.generator, self.config = network, operator, generator, config
        self.grid = (len(targets), len(areas))  # (B, A); everything below has K = B * A rows, areas running fastest
        self.targets = targets.repeat_interleave(len(areas))
        pixels = math.prod(generator.canvas_shape if config.area_on == "canvas" else generator.shape)
        counts = ones_of_areas(pixels, areas) * len(targets)
        self.distance = CountRegulariser(counts, reduction=config.area_reduction).to(start.device)
        self.parameters = start.flatten(0, 1)[:, None].detach().clone()  # (K, 1, *nodes)
        self.drawn, self.velocity = self.parameters.clone(), torch.zeros_like(self.parameters)
        self.weight = torch.full((), config.area_weight, dtype=torch.float64, device=start.device)
        self.reward, self.regulariser = (start.new_empty(len(counts)) for _ in range(2))

    def iterate(self, *, mirror: bool, first: bool = False) -> None:
        """One step of ascent; leaves its reward, regulariser and the parameters it evaluated."""
        c = self.config
        self.drawn.copy_(self.parameters)
        leaf = self.parameters.detach().requires_grad_()
        masks = self.generator(leaf)
        pictures, targets, signs = self._pictures(masks.crop)
        pictures = pictures.flip(-1) if mirror else pictures
        values, gradient = self.network.rewards(pictures, targets, REWARDS[c.reward])
        measured = masks.canvas if c.area_on == "canvas" else masks.crop
        distance = self.distance(measured)
        regulariser = -self.weight.to(distance.dtype) * distance
        signed = gradient * signs.view(-1, *[1] * (gradient.ndim - 1))
        (step,) = torch.autograd.grad([pictures, regulariser], leaf, [signed, torch.ones_like(regulariser)])
        self.velocity.mul_(0 if first else c.momentum).add_(step, alpha=1 if first else 1 - c.dampening)
        self.parameters.add_(self.velocity, alpha=c.learning_rate).clamp_(0, 1)
        self.reward.copy_((values * signs).view(-1, len(self.reward)).sum(0))
        self.regulariser.copy_(regulariser.detach())
        if c.area_schedule == "geometric":
            self.weight.mul_(c.area_growth)

    def enter(self, t: int) -> None:
        """What changes at some iterations only, and so is no part of a recorded one."""
        c = self.config
        if c.area_schedule == "thirds" and t and 3 * t // c.iterations > 3 * (t - 1) // c.iterations:
            self.weight.mul_(2)

    def finish(self) -> tuple[SmoothMasks, Tensor, Tensor]:
        """Masks of the last iteration, and scores of what they keep and of what they leave, ``(K,)`` each."""
        with torch.no_grad():
            masks = self.generator(self.drawn)
            kept, left = (self._perturb(m) for m in (masks.crop, 1 - masks.crop))
        return masks, self.network.scores(kept, self.targets), self.network.scores(left, self.targets)

    def _pictures(self, crop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network is shown, ``(K or 2 K, C, ...)``, with targets and the sign of each reward."""
        plus, minus = torch.ones_like(self.reward), -torch.ones_like(self.reward)
        if self.config.variant == "preserve":
            return self._perturb(crop), self.targets, plus
        if self.config.variant == "delete":
            return self._perturb(1 - crop), self.targets, minus
        both = torch.cat([self._perturb(crop), self._perturb(1 - crop)])
        return both, self.targets.repeat(2), torch.cat([plus, minus])

    def _perturb(self, masks: Tensor) -> Tensor:
        """``(K, 1, ...)`` to ``(K, C, ...)``."""
        return self.operator(masks.reshape(*self.grid, *masks.shape[1:])).flatten(0, 1)


def _repeat(ascent: _Ascent, config: ExtremalConfig, tell: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """All iterations; histories of reward and regulariser, ``(K, T)``."""
    histories = _histories(ascent, config)
    for t in range(config.iterations):
        ascent.enter(t)
        ascent.iterate(mirror=config.jitter and t % 2 == 0, first=t == 0)
        _note(histories, ascent, t, tell)
    return histories


def _replay(ascent: _Ascent, config: ExtremalConfig, tell: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """As :func:`_repeat`, with all but the first iterations replayed from two recordings, mirrored and not."""
    histories, mirrored = _histories(ascent, config), [config.jitter and t % 2 == 0 for t in range(config.iterations)]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # recording needs everything to have run before, away from the default stream
        for t, mirror in enumerate(mirrored[:GRAPH_WARM_UP]):
            ascent.enter(t)
            ascent.iterate(mirror=mirror, first=t == 0)
            _note(histories, ascent, t, tell)
    torch.cuda.current_stream().wait_stream(side)
    recordings: dict[bool, torch.cuda.CUDAGraph] = {}
    for t, mirror in list(enumerate(mirrored))[GRAPH_WARM_UP:]:
        if mirror not in recordings:  # both share memory: what must outlast a replay is in the ascent's own tensors
            pool = next(iter(recordings.values())).pool() if recordings else None
            recordings[mirror] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recordings[mirror], pool=pool):
                ascent.iterate(mirror=mirror)
        ascent.enter(t)
        recordings[mirror].replay()
        _note(histories, ascent, t, tell)
    return histories


def _histories(ascent: _Ascent, config: ExtremalConfig) -> tuple[Tensor, Tensor]:
    shape = (len(ascent.reward), config.iterations)
    return ascent.reward.new_empty(shape), ascent.reward.new_empty(shape)


def _note(histories: tuple[Tensor, Tensor], ascent: _Ascent, t: int, tell: Callable[[int], None]) -> None:
    histories[0][:, t] = ascent.reward
    histories[1][:, t] = ascent.regulariser
    tell(t)


def _reference_scores(
    network: Scorer, operator: Perturbation, images: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the pictures and of the wholly perturbed ones, ``(B,)`` each; where targets are checked."""
    with torch.no_grad():
        classes = network.activations(images[:1]).shape[1]
        if not all(0 <= target < classes for target in targets.tolist()):
            raise ValueError(f"targets must be classes in [0, {classes - 1}], got {targets.tolist()}")
        nothing = operator(images.new_zeros(len(images), 1, 1, *images.shape[2:]))[:, 0]
    return network.scores(images, targets), network.scores(nothing, targets)


def _operator(perturbation: Literal["blur", "fade"] | Perturbation, images: Tensor) -> Perturbation:
    if not isinstance(perturbation, str):
        return perturbation
    if perturbation not in ("blur", "fade"):
        raise ValueError(f"unknown perturbation {perturbation!r}; use 'blur', 'fade' or an operator of one's own")
    return BlurPyramid(images) if perturbation == "blur" else FadePyramid(images)


def _start(start: Tensor | None, generator: SmoothMaskGenerator, images: Tensor, areas: Sequence[float]) -> Tensor:
    shape = (len(images), len(areas), *generator.parameter_shape)
    if start is None:
        return images.new_ones(shape)
    if tuple(start.shape) != shape:
        raise ValueError(f"start must be parameters (B, A, *nodes) = {shape}, got {tuple(start.shape)}")
    return start.to(images)
