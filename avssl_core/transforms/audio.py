"""Log-mel spectrograms and their augmentation.

GDT's audio input (thesis chapter 2, input preprocessing): one second of 24 kHz mono at int16 scale, 20 ms windows
every 10 ms, FFT of 1024, 40 mel filters, natural logarithm, normalised as (s − 1.93) / 17.89: a 1×40×99 image. The
release computes it clip by clip in numpy with ``python_speech_features``; its conventions (pre-emphasis 0.97,
rectangular window, power divided by the FFT length, the last frame filled with zeros, exact zeros replaced by the
float64 epsilon) are the defaults here, because the two normalisation constants only make sense with them. Ours is
batched, runs on any device, and is differentiable but for rounding.

The one difference: the release moves the corners of the triangular filters to whole FFT bins. We take torchaudio's
exact triangles; ``snap=True`` gives the release's, which its released weights were trained with.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from avssl_core.transforms.randomness import uniform

# Samples worked on at once on a CPU: the spectra of more do not stay in its cache.
_CPU_PIECE = 100_000


class LogMelSpectrogram(nn.Module):
    """Waveforms in, normalised log-mel images out. The defaults are GDT's: one second gives ``(1, 40, 99)``.

    Args:
        sample_rate: of the waveforms, in Hz.
        window_s: length of a frame in seconds.
        hop_s: distance between frames in seconds.
        n_fft: length of the FFT, at least the frame; frames are filled with zeros.
        n_mels: number of filters, between 0 Hz and half the sample rate (HTK mel scale).
        preemphasis: coefficient of the first-order high-pass; 0 switches it off.
        mean: subtracted from the logarithm.
        std: divides what is left.
        floor: power put in the place of smaller ones before the logarithm. The default only catches digital silence,
            which therefore lies at −36, far below any sound, as in the release; 1.0 is a gentler choice where clips
            are partly silent.
        quantise: round and clip to int16 first, as the files of the release were. It makes decoded and cached audio
            (stored as int16) give the same silence.
        snap: move the corners of the filters to whole FFT bins, as ``python_speech_features`` and hence the release
            did.
    """

    window: Tensor
    bank: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 24000,
        window_s: float = 0.02,
        hop_s: float = 0.01,
        n_fft: int = 1024,
        n_mels: int = 40,
        preemphasis: float = 0.97,
        mean: float = 1.93,
        std: float = 17.89,
        floor: float = 2.0**-52,
        quantise: bool = True,
        snap: bool = False,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_fft, self.n_mels = sample_rate, n_fft, n_mels
        self.width, self.hop = round(window_s * sample_rate), round(hop_s * sample_rate)
        self.preemphasis, self.mean, self.std, self.floor, self.quantise = preemphasis, mean, std, floor, quantise
        if not self.hop > 0 or not 0 < self.width <= n_fft:
            raise ValueError(
                f"need a positive hop and 0 < window <= n_fft; got window {self.width}, hop {self.hop}, n_fft "
                f"{n_fft} samples"
            )
        if std <= 0 or floor <= 0:
            raise ValueError(f"std and floor must be positive, got {std=}, {floor=}")
        self.register_buffer("bank", _mel_bank(sample_rate, n_fft, n_mels, snap=snap), persistent=False)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform: 1 + ⌈(n − w) / h⌉, the last one filled with zeros; 1 if it is shorter than a window."""
        return 1 + max(0, math.ceil((num_samples - self.width) / self.hop))

    def num_samples(self, num_frames: int) -> int:
        """The number of samples that gives exactly ``num_frames`` full frames."""
        if num_frames < 1:
            raise ValueError(f"num_frames must be positive, got {num_frames}")
        return self.width + (num_frames - 1) * self.hop

    def forward(self, waveform: Tensor) -> Tensor:
        """Transform a batch.

        Args:
            waveform: float in [-1, 1], ``(B, L)``.

        Returns:
            float32 ``(B, 1, n_mels, num_frames(L))``.

        Raises:
            ValueError: if the waveform is not a float batch ``(B, L)`` with L ≥ 1.
        """
        if waveform.dim() != 2 or waveform.shape[1] == 0 or not waveform.is_floating_point():
            raise ValueError(
                f"expected float waveforms of shape (B, L), got {waveform.dtype} {tuple(waveform.shape)}; mix to "
                "mono first"
            )
        # Powers at int16 scale reach 1e11: beyond half precision, so autocast is off.
        with torch.autocast(waveform.device.type, enabled=False):
            at_once = len(waveform) if waveform.is_cuda else max(1, _CPU_PIECE // waveform.shape[1])
            return torch.cat([self._log_mel(piece) for piece in torch.split(waveform.float(), max(1, at_once))])

    def _log_mel(self, waveform: Tensor) -> Tensor:
        if self.bank.device != waveform.device:  # like every transform, it runs where its input lies
            self.bank = self.bank.to(waveform.device)
        log = (self._power(waveform * 32768.0) @ self.bank).clamp_min(self.floor).log()  # (B, frames, n_mels)
        return ((log - self.mean) / self.std).transpose(1, 2).unsqueeze(1)

    def _power(self, samples: Tensor) -> Tensor:
        """``(B, L)`` at int16 scale → power spectra ``(B, frames, n_fft // 2 + 1)``."""
        if self.quantise:
            samples = samples.round().clamp(-32768.0, 32767.0)
        if self.preemphasis:
            samples = torch.cat((samples[:, :1], samples[:, 1:] - self.preemphasis * samples[:, :-1]), dim=1)
        missing = self.num_samples(self.num_frames(samples.shape[1])) - samples.shape[1]
        frames = F.pad(samples, (0, missing)).unfold(1, self.width, self.hop)  # (B, frames, width)
        spectrum = torch.fft.rfft(frames, n=self.n_fft)  # (B, frames, n_fft // 2 + 1)
        # Several times faster than abs().square(), which takes a root only to undo it.
        return torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag) / self.n_fft


class SpecAugment:
    """Mask frequency bands and time spans of a spectrogram (SpecAugment, arXiv 1904.08779, without time warping).

    As the release does it: the width of a mask is the *floor* of a draw from U(0, max), so that ``max_freq=3`` hides
    zero to two bins and ``max_time=6`` zero to five frames; the masks hold 0, which is the mean after normalisation.

    Args:
        max_freq: exclusive limit of the width of a frequency mask, in bins.
        max_time: exclusive limit of the width of a time mask, in frames.
        num_freq: number of frequency masks.
        num_time: number of time masks.
        fill: value under the masks.
    """

    def __init__(
        self, max_freq: int = 3, max_time: int = 6, *, num_freq: int = 1, num_time: int = 1, fill: float = 0.0
    ) -> None:
        if min(max_freq, max_time, num_freq, num_time) < 0:
            raise ValueError(
                f"mask widths and counts cannot be negative: {max_freq=}, {max_time=}, {num_freq=}, {num_time=}"
            )
        self.max_freq, self.max_time, self.num_freq, self.num_time, self.fill = (
            max_freq,
            max_time,
            num_freq,
            num_time,
            fill,
        )

    def __call__(self, spectrogram: Tensor, generator: torch.Generator) -> Tensor:
        """Mask normalised spectrograms ``(B, 1, F, T)``, each with masks of its own; returns a new tensor of that
        shape."""
        if spectrogram.dim() != 4:
            raise ValueError(f"expected spectrograms of shape (B, 1, F, T), got {tuple(spectrogram.shape)}")
        B, _, bins, frames = spectrogram.shape
        if self.max_freq > bins or self.max_time > frames:
            raise ValueError(
                f"masks of up to {self.max_freq} bins, {self.max_time} frames do not fit into {bins}x{frames}"
            )
        masks = self.num_freq + self.num_time
        draws = uniform(B, 2 * masks, generator=generator, device=spectrogram.device).view(B, masks, 2)
        in_freq = _spans(draws[:, : self.num_freq], bins, self.max_freq)  # (B, F)
        in_time = _spans(draws[:, self.num_freq :], frames, self.max_time)  # (B, T)
        hidden = in_freq[:, None, :, None] | in_time[:, None, None, :]
        return spectrogram.masked_fill(hidden, self.fill)


class VolumeJitter:
    """Multiply each waveform by a factor from U(low, high); GDT: U(0.9, 1.1)."""

    def __init__(self, low: float = 0.9, high: float = 1.1) -> None:
        if not 0 <= low <= high:
            raise ValueError(f"need 0 <= low <= high, got {low=}, {high=}")
        self.low, self.high = low, high

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Scale ``(B, …)``, one factor per row. Nothing is clipped."""
        factor = self.low + (self.high - self.low) * uniform(
            len(waveform), 1, generator=generator, device=waveform.device
        )
        return waveform * factor.view(-1, *[1] * (waveform.dim() - 1)).to(waveform.dtype)


def _spans(draws: Tensor, length: int, limit: int) -> Tensor:
    """Union of random spans: ``draws`` ``(B, n, 2)`` in [0, 1) → bool ``(B, length)``."""
    width = (draws[..., 0] * limit).floor()  # (B, n)
    start = (draws[..., 1] * (length - width + 1)).floor()
    place = torch.arange(length, device=draws.device)
    inside = (place >= start[..., None]) & (place < (start + width)[..., None])  # (B, n, length)
    return inside.any(dim=1)


def _mel_bank(sample_rate: int, n_fft: int, n_mels: int, *, snap: bool) -> Tensor:
    """Triangular filters ``(n_fft // 2 + 1, n_mels)``, HTK mel scale, not normalised by area."""
    if not snap:
        return melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate, norm=None, mel_scale="htk")
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    mels = torch.linspace(0, top, n_mels + 2, dtype=torch.float64)
    corners = ((n_fft + 1) * 700 * (10 ** (mels / 2595) - 1) / sample_rate).floor()  # (n_mels + 2,)
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None]
    # A corner that coincides with its neighbour leaves an empty flank: the clamp only avoids 0 / 0 there.
    rising = (bins - low) / (centre - low).clamp_min(1)
    falling = (high - bins) / (high - centre).clamp_min(1)
    bank = torch.where(bins < centre, rising, falling)
    return torch.where((bins >= low) & (bins < high), bank, 0.0).float()
