"""Clip augmentation: one crop, one flip, one colour change per clip, the same on all of its frames.

GDT's recipe (thesis chapter 2, input preprocessing; values of the release): the shorter side is rescaled to a random
length of 128–160 pixels, a random 112×112 crop is taken, flipped with probability 0.5, its brightness, contrast and
saturation are jittered by up to 0.4, and every channel is normalised with mean 0.45 and standard deviation 0.225.

What we do differently:

* The release's jitter takes the time axis for the colour axis, so that contrast and saturation blend the first three
  *frames* into a "grey" image. Here the colour axis is explicit and a test holds it.
* Rescale, crop and flip are one bilinear resampling of the whole batch; brightness, contrast, saturation and
  normalisation are one affine map of the colour (a 3×3 matrix and an offset) per clip.
* Contrast is taken about the mean grey of the whole clip, not of each frame: a per-frame mean would make the change
  flicker. Without clamping between them (neither the release nor we clamp) the three colour changes commute, so no
  random order is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.transforms.randomness import uniform

# Rec. 601 luma, the weights of every "to greyscale" that the field uses.
LUMA = (0.299, 0.587, 0.114)

# On a CPU the batch is worked through in pieces of about this many values, so that intermediates stay in the cache
# and their memory is reused instead of being mapped anew: twice as fast as the whole batch at once (64 clips of
# 16×56×56, one thread).
_CPU_PIECE = 1_200_000


def to_float(frames: Tensor) -> Tensor:
    """Turn decoded frames into what networks take.

    Args:
        frames: uint8 of shape ``(..., T, 3, H, W)``, as readers give them.

    Returns:
        float32 in [0, 1] of shape ``(..., 3, T, H, W)``. It is a transposed view: frames stay contiguous in memory,
        which is the order that networks working on ``B·T`` images want.

    Raises:
        ValueError: if the frames are not uint8 or the axis before height and width is not colour.
    """
    if frames.dtype != torch.uint8 or frames.dim() < 4 or frames.shape[-3] != 3:
        raise ValueError(f"expected uint8 frames of shape (..., T, 3, H, W), got {frames.dtype} {tuple(frames.shape)}")
    return frames.to(torch.float32).mul_(1 / 255).transpose(-4, -3)


class ClipAugment:
    """Random rescale, crop, flip, colour jitter and normalisation, one set of parameters per clip.

    Args:
        size: side of the square crop in pixels.
        scale: range of the shorter side after rescaling, in units of ``size``. The default is the paper's 128–160 for
            112. ``None`` takes the crop at the resolution of the input, without resampling.
        flip: probability of a horizontal flip.
        jitter: strength of brightness, contrast and saturation; each factor is drawn from U(1 − jitter, 1 + jitter).
        mean: subtracted from every channel, in units of [0, 1].
        std: divides every channel.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] | None = (128 / 112, 160 / 112),
        flip: float = 0.5,
        jitter: float = 0.4,
        mean: float = 0.45,
        std: float = 0.225,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be a positive number of pixels, got {size}")
        if scale is not None and not 1 <= scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range (low, high) with 1 <= low <= high, got {scale}")
        if not 0 <= flip <= 1 or not 0 <= jitter <= 1 or std <= 0:
            raise ValueError(f"need 0 <= flip <= 1, 0 <= jitter <= 1, std > 0; got {flip=}, {jitter=}, {std=}")
        self.size, self.scale, self.flip, self.jitter, self.mean, self.std = size, scale, flip, jitter, mean, std

    def __call__(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            clip: ``(B, 3, T, H, W)``, float in [0, 1] or uint8.
            generator: the only source of randomness. Clip b uses row b of one draw of shape (B, 7).

        Returns:
            float32 ``(B, 3, T, size, size)``, normalised, on the device of ``clip``; in memory the frames of a clip
            follow each other as they did in the input.
        """
        _check_clip(clip)
        draws = uniform(clip.shape[0], 7, generator=generator, device=clip.device)
        return _in_pieces(self._augment, _frames_first(clip), draws).transpose(1, 2)

    def _augment(self, frames: Tensor, draws: Tensor) -> Tensor:
        """Augment ``(B, T, 3, H, W)`` with parameters made from ``draws`` ``(B, 7)``: place (2), scale, flip, colour
        (3)."""
        down, across, flipped = draws[:, 0], draws[:, 1], draws[:, 3] < self.flip
        if self.scale is None:
            crops = _crop_pixels(frames, self.size, down, across, flipped)
        else:
            low, high = self.scale
            crops = _resample(frames, self.size, low + (high - low) * draws[:, 2], down, across, flipped)
        factors = 1 + self.jitter * (2 * draws[:, 4:7] - 1)
        unit = 255.0 if frames.dtype == torch.uint8 else 1.0
        return _recolour(crops, factors, mean=self.mean, std=self.std, unit=unit)


class ClipEval:
    """The deterministic counterpart for evaluation: rescale, crop at a stated place, normalise.

    Args:
        size: side of the square crop in pixels.
        scale: shorter side after rescaling, in units of ``size``.
        position: place of the crop along the longer side, 0 to 1. 0.5 is the centre; 0, 0.5 and 1 are the three crops
            of many test protocols.
        mean: subtracted from every channel.
        std: divides every channel.
    """

    def __init__(
        self, size: int, *, scale: float = 1.0, position: float = 0.5, mean: float = 0.45, std: float = 0.225
    ) -> None:
        if size < 1 or scale < 1 or not 0 <= position <= 1 or std <= 0:
            raise ValueError(
                f"need size >= 1, scale >= 1, 0 <= position <= 1, std > 0; got {size=}, {scale=}, {position=}, {std=}"
            )
        self.size, self.scale, self.position, self.mean, self.std = size, scale, position, mean, std

    def __call__(self, clip: Tensor) -> Tensor:
        """Rescale, crop and normalise ``(B, 3, T, H, W)``, float in [0, 1] or uint8, to ``(B, 3, T, size, size)``."""
        _check_clip(clip)
        one = torch.ones(clip.shape[0], device=clip.device)
        return _in_pieces(self._prepare, _frames_first(clip), one).transpose(1, 2)

    def _prepare(self, frames: Tensor, one: Tensor) -> Tensor:
        """Rescale, crop and normalise ``(B, T, 3, H, W)``; ``one`` is ``(B,)`` of ones."""
        H, W = frames.shape[-2:]
        down = one * (self.position if H > W else 0.5)
        across = one * (self.position if W >= H else 0.5)
        crops = _resample(frames, self.size, self.scale * one, down, across, one < 0)
        unit = 255.0 if frames.dtype == torch.uint8 else 1.0
        return crops.div_(unit * self.std).sub_(self.mean / self.std)


class GaussianBlur:
    """Blur whole clips with a Gaussian, one width per clip (as in SimCLR, arXiv 2002.05709, appendix A).

    Args:
        sigma: range of the standard deviation in pixels.
        probability: share of the clips that are blurred at all; the others come back unchanged.
    """

    def __init__(self, *, sigma: tuple[float, float] = (0.1, 2.0), probability: float = 0.5) -> None:
        if not 0 < sigma[0] <= sigma[1] or not 0 <= probability <= 1:
            raise ValueError(f"need 0 < low <= high and 0 <= probability <= 1; got {sigma=}, {probability=}")
        self.sigma, self.probability = sigma, probability

    def __call__(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """Blur a float batch ``(B, 3, T, H, W)``; the result has the same shape."""
        _check_clip(clip)
        if not clip.is_floating_point():
            raise ValueError(f"blur works on float clips, got {clip.dtype}; apply to_float first")
        draws = uniform(clip.shape[0], 2, generator=generator, device=clip.device)
        chosen = draws[:, 0] < self.probability
        if not bool(chosen.any()):
            return clip
        low, high = self.sigma
        sigma = (low + (high - low) * draws[:, 1])[chosen]
        H, W = clip.shape[-2:]
        out = clip.clone()
        with torch.autocast(clip.device.type, enabled=False):
            rows = _blur_matrix(H, sigma)[:, None, None]  # (b, 1, 1, H, H)
            columns = _blur_matrix(W, sigma)[:, None, None]  # (b, 1, 1, W, W)
            out[chosen] = (rows @ clip[chosen].float() @ columns.transpose(-1, -2)).to(clip.dtype)
        return out


def _check_clip(clip: Tensor) -> None:
    if clip.dim() != 5 or clip.shape[1] != 3:
        raise ValueError(f"expected clips of shape (B, 3, T, H, W), got {tuple(clip.shape)}; see to_float")
    if not clip.is_floating_point() and clip.dtype != torch.uint8:
        raise ValueError(f"expected float clips in [0, 1] or uint8, got {clip.dtype}")


def _frames_first(clip: Tensor) -> Tensor:
    """``(B, 3, T, H, W)`` → contiguous ``(B, T, 3, H, W)``; free for what ``to_float`` or a reader gave."""
    return clip.transpose(1, 2).contiguous()


def _in_pieces(transform: Callable[[Tensor, Tensor], Tensor], frames: Tensor, parameters: Tensor) -> Tensor:
    """Apply ``transform(frames, parameters)``, which treats clips independently, piece by piece on a CPU (see
    ``_CPU_PIECE``)."""
    B = len(frames)
    at_once = B if frames.is_cuda else max(1, _CPU_PIECE // max(1, frames[0].numel())) if B else 1
    if at_once >= B:
        return transform(frames, parameters)
    first = transform(frames[:at_once], parameters[:at_once])
    out = first.new_empty(B, *first.shape[1:])
    out[:at_once] = first
    for b in range(at_once, B, at_once):
        out[b : b + at_once] = transform(frames[b : b + at_once], parameters[b : b + at_once])
    return out


def _resample(frames: Tensor, size: int, scale: Tensor, down: Tensor, across: Tensor, flipped: Tensor) -> Tensor:
    """Rescale and crop in one bilinear resampling.

    Args:
        frames: ``(B, T, 3, H, W)``.
        size: side of the crop.
        scale: ``(B,)`` shorter side after rescaling, in units of ``size``.
        down: ``(B,)`` in [0, 1], vertical place of the crop.
        across: ``(B,)`` in [0, 1], horizontal place of the crop.
        flipped: ``(B,)`` bool.

    Returns:
        float32 ``(B, T, 3, size, size)``.
    """
    B, T, _, H, W = frames.shape
    step = min(H, W) / (scale * size)  # (B,) input pixels per output pixel
    centres = torch.arange(size, device=frames.device) + 0.5  # (S,)
    y = (down * (H - step * size))[:, None] + step[:, None] * centres  # (B, S), pixel edges at integers
    x = (across * (W - step * size))[:, None] + step[:, None] * centres
    x = torch.where(flipped[:, None], x.flip(1), x)
    grid = torch.stack(
        ((2 * x / W - 1)[:, None, :].expand(B, size, size), (2 * y / H - 1)[:, :, None].expand(B, size, size)), dim=-1
    )  # (B, S, S, 2), x before y
    with torch.autocast(frames.device.type, enabled=False):
        # The frames of a clip share the grid: they ride along as channels.
        images = frames.view(B, T * 3, H, W).float()
        crops = F.grid_sample(images, grid.float(), mode="bilinear", padding_mode="border", align_corners=False)
    return crops.view(B, T, 3, size, size)


def _crop_pixels(frames: Tensor, size: int, down: Tensor, across: Tensor, flipped: Tensor) -> Tensor:
    """Cut ``(B, T, 3, size, size)`` out of ``(B, T, 3, H, W)`` at whole pixels, without resampling; float32."""
    B, T, _, H, W = frames.shape
    if min(H, W) < size:
        raise ValueError(f"cannot crop {size}x{size} from frames of {H}x{W}; decode them larger or pass scale=(1, 1)")
    # floor(u · n) < n for u < 1, except where float32 rounds up: clamp.
    top = (down * (H - size + 1)).long().clamp_(max=H - size).tolist()
    left = (across * (W - size + 1)).long().clamp_(max=W - size).tolist()
    out = torch.empty(B, T, 3, size, size, dtype=torch.float32, device=frames.device)
    for b, (y, x, mirror) in enumerate(zip(top, left, flipped.tolist(), strict=True)):
        crop = frames[b, ..., y : y + size, x : x + size]
        out[b] = crop.flip(-1) if mirror else crop
    return out


def _recolour(frames: Tensor, factors: Tensor, *, mean: float, std: float, unit: float) -> Tensor:
    """Brightness, contrast, saturation and normalisation as one affine map of the colour per clip.

    With x a colour, g = luma·x its grey and ḡ the mean grey of the clip: brightness is b·x, contrast c·x + (1 − c)·ḡ,
    saturation s·x + (1 − s)·g. Their composition is bc·[s·x + (1 − s)·g] + b(1 − c)·ḡ, in any order.

    Args:
        frames: ``(B, T, 3, S, S)`` in [0, unit].
        factors: ``(B, 3)``: b, c, s.
        mean: of the normalisation.
        std: of the normalisation.
        unit: the value of white in ``frames``.

    Returns:
        ``(B, T, 3, S, S)``.
    """
    B, T, _, S, _ = frames.shape
    with torch.autocast(frames.device.type, enabled=False):
        luma = frames.new_tensor(LUMA)
        brightness, contrast, saturation = factors.unbind(1)
        grey_mean = frames.mean(dim=(1, 3, 4)) @ luma  # (B,)
        identity = torch.eye(3, device=frames.device)
        matrix = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * luma  # (B, 3, 3)
        matrix = matrix * (brightness * contrast / (std * unit))[:, None, None]
        offset = (brightness * (1 - contrast) * grey_mean / unit - mean) / std  # (B,)
        pixels = frames.view(B, T, 3, S * S)
        out = torch.matmul(matrix[:, None], pixels).add_(offset[:, None, None, None])
    return out.view(B, T, 3, S, S)


def _blur_matrix(n: int, sigma: Tensor) -> Tensor:
    """Rows of normalised Gaussian weights, ``(b, n, n)``. Near the border the weights inside the image are
    renormalised."""
    place = torch.arange(n, device=sigma.device, dtype=torch.float32)
    distance = (place[:, None] - place[None, :])[None] / sigma[:, None, None]
    return torch.softmax(-0.5 * distance.square(), dim=-1)
