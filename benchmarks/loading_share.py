"""Which share of its in-memory speed training reaches when it loads its clips. Goal: at least 95 % on two cores.

Both sides run the same training step (augmentation, spectrograms, forward, backward, update) in the same process, in
turns: once with batches from the loader, once on a batch that is already in memory. The defaults are the shapes of the
GDT chapter at ``small``, hypothesis (e). Run it alone on the machine::

    python benchmarks/loading_share.py                       # from the decoded cache, as the chapters do
    python benchmarks/loading_share.py --source files        # decoding every window anew
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avssl_core.data import DecodedCache, WindowDataset, WindowSpec, open_corpus
from avssl_core.encoders import small
from avssl_core.losses import symmetric_info_nce
from avssl_core.training import FitConfig, FitResult, fit, prepare_windows, window_loader
from avssl_core.transforms import ClipAugment, LogMelSpectrogram, SpecAugment
from data_prep.playground import Actions, build_playground

RESULTS = Path(__file__).parent / "results" / "loading_share.json"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="any corpus or folder of videos; default: the playground")
    parser.add_argument("--source", choices=("cache", "files"), default="cache")
    parser.add_argument("--clips", type=int, default=400, help="playground clips")
    parser.add_argument("--batch", type=int, default=128, help="videos a batch")
    parser.add_argument("--windows", type=int, default=1, help="of a video; only the first is trained on")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--crop", type=int, default=48)
    parser.add_argument("--width", type=int, default=16, help="of the video network")
    parser.add_argument("--audio-width", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--steps", type=int, default=20, help="steps of each side a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    return parser.parse_args()


def dataset_of(args: argparse.Namespace, cache_root: Path) -> WindowDataset:
    folder = args.data or build_playground(Actions(), clips=args.clips, seed=0)
    corpus, size = open_corpus(folder), (args.size, args.size)
    spec = WindowSpec(args.frames, args.fps, size, sample_rate=16000, windows=args.windows)
    cache = DecodedCache.build(corpus, spec, root=cache_root) if args.source == "cache" else None
    return WindowDataset(corpus, spec, seed=0, cache=cache)


class Objective:
    """Cross-modal InfoNCE on one window of each video; others only add to the loading."""

    def __init__(self, crop: int) -> None:
        self.augment, self.spec_augment = ClipAugment(crop), SpecAugment(max_freq=3, max_time=6)
        self.log_mel = LogMelSpectrogram(sample_rate=16000, n_mels=40, n_fft=512)

    def __call__(self, model: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        video, audio = prepare_windows(
            batch,
            clip_augment=self.augment,
            log_mel=self.log_mel,
            spec_augment=self.spec_augment,
            generator=generator,
        ).views()
        a, b = model(video, audio)
        return symmetric_info_nce(a, b, temperature=0.1), {}


def measure(args: argparse.Namespace) -> list[FitResult]:
    with tempfile.TemporaryDirectory() as scratch:
        loader = window_loader(dataset_of(args, Path(scratch)), args.batch, seed=0, workers=args.workers)
        objective, model = Objective(args.crop), small(seed=0, width=args.width, audio_width=args.audio_width)
        config = FitConfig(steps=args.steps, lr=0.01, optimiser="adamw")
        settings: dict[str, Any] = {"device": args.device, "in_memory_steps": args.steps}
        return [fit(model, loader.batches, objective, config, **settings) for _ in range(args.rounds)]


def main() -> None:
    args = options()
    if args.threads:
        torch.set_num_threads(args.threads)
    load = round(os.getloadavg()[0], 1)  # timings beside other programs say little
    results = measure(args)
    for result in results:
        print(result.summary())
    shares = [result.loading_share or 0.0 for result in results]
    figures = {
        "loading_share_median": statistics.median(shares),
        "loading_share_lowest": min(shares),
        "wait_share_median": statistics.median(result.wait_share for result in results),
        "clips_per_s_median": statistics.median(result.clips_per_s for result in results),
        "threads": torch.get_num_threads(),
        "load_average_before": load,
        "settings": {name: str(value) for name, value in vars(args).items() if name != "json"},
    }
    print(json.dumps(figures, indent=2))
    args.json.parent.mkdir(exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
