"""What a small supervised network finds in the playground's files, from sight alone and from sound alone.

    python benchmarks/playground_supervised.py [--clips 1000] [--epochs 12]

This checks the world, not a method: labels that a recipe says can be seen (or heard) must be learnable from the encoded
files by a small network, and those that it says cannot must stay near their ceiling. One network a modality with a head
a label, one thread, about three minutes. Written to ``benchmarks/results/playground_supervised.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import pandas as pd
import torch
import torchaudio
from torch import Tensor, nn

from avssl_core.media import read_all
from data_prep.playground import Actions, build_playground, describe

RESULTS = Path(__file__).parent / "results" / "playground_supervised.json"
KINDS = ("event", "shape", "motion", "direction", "identity")
SIZE, FPS, FRAMES, RATE = 40, 12.5, 10, 16000  # windows of 0.8 s around the middle of each segment
WINDOW_S = FRAMES / FPS


def conv(inp: int, out: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> nn.Sequential:
    """Convolution over two or three axes, normalised, rectified."""
    three = len(kernel) == 3
    padding = tuple(k // 2 for k in kernel)
    layer, norm = (nn.Conv3d, nn.BatchNorm3d) if three else (nn.Conv2d, nn.BatchNorm2d)
    return nn.Sequential(layer(inp, out, kernel, stride, padding, bias=False), norm(out), nn.ReLU())


class Net(nn.Module):
    """A trunk and a linear head a label; the trunk ends in averages over space and a flattened time axis."""

    def __init__(self, trunk: nn.Module, dim: int, classes: dict[str, int]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({kind: nn.Linear(dim, n) for kind, n in classes.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {kind: head(features) for kind, head in self.heads.items()}


def sight_net(classes: dict[str, int]) -> Net:
    """(B, 3, T, H, W) → logits: space in two dimensions, then time in one."""
    trunk = nn.Sequential(
        conv(3, 24, (1, 5, 5), (1, 2, 2)),
        conv(24, 32, (1, 3, 3), (1, 2, 2)),
        conv(32, 32, (3, 1, 1), (1, 1, 1)),
        conv(32, 64, (1, 3, 3), (1, 2, 2)),
        conv(64, 64, (3, 1, 1), (2, 1, 1)),
        nn.AdaptiveMaxPool3d((5, 1, 1)),
        nn.Flatten(),
        nn.Dropout(0.2),
    )
    return Net(trunk, 5 * 64, classes)


def sound_net(classes: dict[str, int]) -> Net:
    """(B, 1, mels, frames) → logits; the time axis is kept until the heads."""
    trunk = nn.Sequential(
        conv(1, 24, (5, 5), (2, 2)),
        conv(24, 48, (3, 3), (2, 2)),
        conv(48, 64, (3, 3), (2, 2)),
        nn.AdaptiveAvgPool2d((5, 5)),
        nn.Flatten(),
        nn.Dropout(0.2),
    )
    return Net(trunk, 25 * 64, classes)


def windows(folder: Path) -> tuple[Tensor, Tensor, pd.DataFrame]:
    """All labelled windows of a corpus, through the ordinary reader.

    Returns frames (N, 3, T, H, W) uint8, log-mels (N, 1, 40, F), and a row of labels a window.
    """
    index, timed = (pd.read_parquet(folder / f"{name}.parquet") for name in ("index", "timed"))
    timed = timed.pivot(index=["clip_id", "start_s", "end_s"], columns="kind", values="label")
    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=512, win_length=400, hop_length=160, f_min=60, n_mels=40)
    frames, sounds, rows = [], [], []
    for clip in index.itertuples():
        read = read_all(folder / clip.uri, fps=FPS, size=SIZE, sample_rate=RATE)
        assert read.waveform is not None
        for (start_s, end_s), labels in timed.loc[clip.clip_id].iterrows():
            first = max(0.0, min((start_s + end_s) / 2 - WINDOW_S / 2, clip.duration_s - WINDOW_S - 0.04))
            i, j = round(first * FPS), round(first * RATE)
            frames.append(read.frames[i : i + FRAMES])
            sounds.append(mel(read.waveform[j : j + round(WINDOW_S * RATE)]).add(1e-5).log())
            rows.append({"clip": clip.clip_id, "split": clip.split, "identity": clip.label_identity, **labels})
    sight = torch.stack(frames).permute(0, 2, 1, 3, 4).contiguous()  # (N, T, 3, H, W) → (N, 3, T, H, W)
    return sight, torch.stack(sounds)[:, None], pd.DataFrame(rows)


def fit(net: Net, x: Tensor, y: dict[str, Tensor], train: Tensor, *, epochs: int, batch: int = 64) -> dict[str, float]:
    """Train on ``train`` with one-cycle AdamW on the sum of the heads' losses; return test accuracies."""
    generator = torch.Generator().manual_seed(0)
    rows = train.nonzero()[:, 0]
    steps = epochs * (len(rows) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in rows[torch.randperm(len(rows), generator=generator)].split(batch):
            if len(chosen) < batch:
                continue
            clips = prepare(x[chosen])
            if clips.ndim == 5 and torch.rand(1, generator=generator) < 0.5:
                clips = clips.flip(-1)  # every label survives mirroring; more pictures for nothing
            logits = net.train()(clips)
            loss = sum(nn.functional.cross_entropy(logits[kind], y[kind][chosen]) for kind in y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()
    test = (~train).nonzero()[:, 0]
    with torch.no_grad():
        parts = [net(prepare(x[chosen])) for chosen in test.split(256)]
    answers = {kind: torch.cat([part[kind] for part in parts]).argmax(1) for kind in y}
    return {kind: float((answers[kind] == y[kind][test]).float().mean()) for kind in y}


def prepare(x: Tensor) -> Tensor:
    """Frames to about zero mean and unit range; log-mels likewise."""
    return x.float().div(127.5).sub(1) if x.dtype == torch.uint8 else x.add(4).div(4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.process_time()
    sight, sound, labels = windows(build_playground(Actions(), clips=args.clips, seed=0, progress=False))
    y = {kind: torch.from_numpy(labels[kind].astype("category").cat.codes.to_numpy("int64").copy()) for kind in KINDS}
    classes = {kind: int(codes.max()) + 1 for kind, codes in y.items()}
    train = torch.from_numpy((labels.split == "train").to_numpy().copy())
    test = labels[labels.split == "test"]
    truth = describe("actions")
    result: dict[str, object] = {
        "recipe": "actions",
        "clips": args.clips,
        "epochs": args.epochs,
        "test_windows": len(test),
    }
    for modality, make, x in (("sight", sight_net, sight), ("sound", sound_net, sound)):
        for kind, accuracy in fit(make(classes), x, y, train, epochs=args.epochs).items():
            n_test = test["clip"].nunique() if kind == "identity" else len(test)  # a clip has one identity
            half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n_test)
            chance, ceiling = float(truth.chance[kind]), float(truth[modality][kind])
            result[f"{kind} from {modality}"] = {
                "accuracy": round(accuracy, 3),
                "interval": [round(max(0.0, accuracy - half), 3), round(min(1.0, accuracy + half), 3)],
                "chance": round(chance, 3),
                "ceiling": round(ceiling, 3),
            }
            print(
                f"{kind:9s} from {modality}: {accuracy:.3f} ± {half:.3f} (chance {chance:.3f}, ceiling {ceiling:.3f})"
            )
    result["cpu_s"] = round(time.process_time() - start)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"{result['cpu_s']} CPU seconds; written to {RESULTS}")


if __name__ == "__main__":
    main()
