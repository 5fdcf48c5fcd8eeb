"""What a small supervised network finds in the playground's files, from sight alone, from sound alone, from both.

    python benchmarks/playground_supervised.py [--recipes actions web boxes]

This checks the world, not a method: labels that a recipe says can be seen (or heard) must be learnable from the encoded
files by a small network, and those that it says cannot must stay near their ceiling. One network a modality with a head
a label, one thread, three to five minutes a recipe. Of ``web`` a network with both senses is asked as well whether they
belong together, for which the recipe states no ceiling. Written to ``benchmarks/results/playground_supervised.json``:
``actions`` at its top level, others under their names, each run leaving the others' figures as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchaudio
from torch import Tensor, nn

from avssl_core.media import read_all
from data_prep.playground import Actions, Boxes, Recipe, Web, build_playground, describe

RESULTS = Path(__file__).parent / "results" / "playground_supervised.json"
FPS, FRAMES, RATE = 12.5, 10, 16000  # windows of 0.8 s around the middle of each segment
WINDOW_S = FRAMES / FPS
SENSES = ("sight", "sound", "both")


@dataclass(frozen=True)
class Plan:
    """What is asked of a recipe's files."""

    recipe: Recipe
    kinds: tuple[str, ...]  # labels, each with a head
    by_clip: tuple[str, ...] = ()  # of these, answered once a clip, from the mean over its windows
    together: tuple[str, ...] = ()  # asked of sight and sound together, too
    size: int = 40  # side of the decoded frames, pixels
    parts: int = 1  # windows for each labelled stretch of time
    clips: int = 1000
    epochs: int = 12


EVENTS = ("event", "shape", "motion", "direction")
PRESENT = tuple(f"has_{shape}" for shape in ("ball", "star", "box", "ring", "heart", "cross"))
PLANS = {
    "actions": Plan(Actions(), (*EVENTS, "identity")),
    "web": Plan(
        Web(), (*EVENTS, "identity", "match", "soundtrack"), ("match", "soundtrack"), together=("match", "soundtrack")
    ),
    "boxes": Plan(Boxes(), ("sounding", *PRESENT), ("sounding", *PRESENT), size=56, parts=2, clips=800, epochs=24),
}


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


class Both(nn.Module):
    """Both trunks, each with its own heads, and what they say of one window compared."""

    def __init__(self, classes: dict[str, int], together: tuple[str, ...]) -> None:
        super().__init__()
        self.aside = {kind: n for kind, n in classes.items() if kind in EVENTS}
        self.sight, self.sound = sight_net(self.aside), sound_net(self.aside)
        self.of_sight, self.of_sound = nn.Linear(5 * 64, 64), nn.Linear(25 * 64, 64)
        pairs = sum(n * n for n in self.aside.values())
        self.compare = nn.Sequential(nn.Linear(pairs + 3 * 64, 64), nn.ReLU(), nn.Dropout(0.2))
        self.heads = nn.ModuleDict({kind: nn.Linear(64, classes[kind]) for kind in together})

    def forward(self, frames: Tensor, mels: Tensor) -> dict[str, Tensor]:
        seen, heard = self.sight.trunk(frames), self.sound.trunk(mels)
        said = {f"{kind} {sense}": net.heads[kind](features) for kind in self.aside
                for sense, net, features in (("seen", self.sight, seen), ("heard", self.sound, heard))}  # fmt: skip
        joint = [
            (said[f"{kind} seen"].softmax(1)[:, :, None] * said[f"{kind} heard"].softmax(1)[:, None]).flatten(1)
            for kind in self.aside
        ]
        v, a = self.of_sight(seen), self.of_sound(heard)
        compared = self.compare(torch.cat([*joint, v, a, v * a], 1))
        return said | {kind: head(compared) for kind, head in self.heads.items()}


def spans(timed: pd.DataFrame, parts: int) -> Iterator[tuple[float, float, dict[str, str]]]:
    """Beginning, end and labels of every labelled stretch of a clip, each cut into equal parts."""
    for (start_s, end_s), labels in timed.iterrows():
        length = (end_s - start_s) / parts
        for part in range(parts):
            yield start_s + part * length, start_s + (part + 1) * length, labels.to_dict()


def windows(folder: Path, plan: Plan) -> tuple[Tensor, Tensor, pd.DataFrame]:
    """All labelled windows of a corpus, through the ordinary reader.

    Returns frames (N, 3, T, H, W) uint8, log-mels (N, 1, 40, F), and a row of labels a window.
    """
    index, timed = (pd.read_parquet(folder / f"{name}.parquet") for name in ("index", "timed"))
    timed = timed.pivot(index=["clip_id", "start_s", "end_s"], columns="kind", values="label")
    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=512, win_length=400, hop_length=160, f_min=60, n_mels=40)
    frames, sounds, rows = [], [], []
    for clip in index.itertuples():
        read = read_all(folder / clip.uri, fps=FPS, size=plan.size, sample_rate=RATE)
        assert read.waveform is not None
        whole = {kind: getattr(clip, f"label_{kind}") for kind in plan.kinds if f"label_{kind}" in index}
        for start_s, end_s, labels in spans(timed.loc[clip.clip_id], plan.parts):
            first = max(0.0, min((start_s + end_s) / 2 - WINDOW_S / 2, clip.duration_s - WINDOW_S - 0.04))
            i, j = round(first * FPS), round(first * RATE)
            frames.append(read.frames[i : i + FRAMES])
            sounds.append(mel(read.waveform[j : j + round(WINDOW_S * RATE)]).add(1e-5).log())
            rows.append({"clip": clip.clip_id, "split": clip.split, **whole, **labels})
    sight = torch.stack(frames).permute(0, 2, 1, 3, 4).contiguous()  # (N, T, 3, H, W) → (N, 3, T, H, W)
    return sight, torch.stack(sounds)[:, None], pd.DataFrame(rows)


def fit(
    net: nn.Module, x: tuple[Tensor, ...], y: dict[str, Tensor], train: Tensor, *, epochs: int, batch: int = 64
) -> dict[str, Tensor]:
    """Train on ``train`` with one-cycle AdamW on the sum of the heads' losses; return logits of the others."""
    generator = torch.Generator().manual_seed(0)
    rows = train.nonzero()[:, 0]
    steps = epochs * (len(rows) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in rows[torch.randperm(len(rows), generator=generator)].split(batch):
            if len(chosen) < batch:
                continue
            inputs = [prepare(each[chosen]) for each in x]
            if inputs[0].ndim == 5 and torch.rand(1, generator=generator) < 0.5:
                inputs[0] = inputs[0].flip(-1)  # every label survives mirroring; more pictures for nothing
            logits = net.train()(*inputs)
            loss = sum(nn.functional.cross_entropy(logits[kind], y[kind][chosen]) for kind in y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()
    test = (~train).nonzero()[:, 0]
    with torch.no_grad():
        parts = [net(*(prepare(each[chosen]) for each in x)) for chosen in test.split(256)]
    return {kind: torch.cat([part[kind] for part in parts]) for kind in y}


def prepare(x: Tensor) -> Tensor:
    """Frames to about zero mean and unit range; log-mels likewise."""
    return x.float().div(127.5).sub(1) if x.dtype == torch.uint8 else x.add(4).div(4)


def answers(plan: Plan, kind: str, logits: Tensor, truth: Tensor, clips: pd.Series) -> pd.DataFrame:
    """Whether each answer is right, a row a window, or a clip where its windows answer together; indexed by clip."""
    table = pd.DataFrame(logits.log_softmax(1).numpy()).assign(truth=truth.numpy(), clip=clips.to_numpy())
    table = table.groupby("clip").mean() if kind in plan.by_clip else table.set_index("clip")
    said = table.drop(columns="truth").to_numpy().argmax(1)
    return pd.DataFrame({"right": said == table["truth"].to_numpy()}, index=table.index)


def score(right: pd.DataFrame, n: int, chance: float, ceiling: float | None) -> dict[str, object]:
    """Accuracy with its 95 % interval over ``n`` independent answers, beside what the recipe says."""
    accuracy = float(right["right"].mean())
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)
    return {
        "accuracy": round(accuracy, 3),
        "interval": [round(max(0.0, accuracy - half), 3), round(min(1.0, accuracy + half), 3)],
        "chance": round(chance, 3),
        "ceiling": None if ceiling is None else round(ceiling, 3),
    }


def network(sense: str, classes: dict[str, int], plan: Plan) -> nn.Module:
    """A fresh network with this sense."""
    if sense == "both":
        return Both(classes, plan.together)
    return sight_net(classes) if sense == "sight" else sound_net(classes)


def asked(plan: Plan, sense: str, y: dict[str, Tensor], own: Tensor | None) -> dict[str, Tensor]:
    """Targets of a network with this sense; -100 is no target."""
    if sense != "both":
        return y
    seen = {f"{kind} seen": y[kind] for kind in EVENTS}
    heard = {f"{kind} heard": y[kind] if own is None else y[kind].where(own, -100) for kind in EVENTS}
    return seen | heard | {kind: y[kind] for kind in plan.together}


def examine(
    plan: Plan, sense: str, logits: dict[str, Tensor], y: dict[str, Tensor], test: pd.DataFrame
) -> dict[str, dict[str, Any]]:
    """Scores of everything that a sense was asked about the test windows ``test``."""
    truth, recipe, found = describe(plan.recipe), plan.recipe, {}
    for kind in plan.kinds if sense != "both" else plan.together:
        right = answers(plan, kind, logits[kind], y[kind], test["clip"])
        clipwise = kind in ("identity", *plan.by_clip) or (isinstance(recipe, Web) and sense == "sound")
        n = right.index.nunique() if clipwise else len(right)  # a clip has one place, and one sound track
        ceiling = None if sense == "both" else float(truth[sense][kind])
        found[f"{kind} from {sense}"] = score(right, n, float(truth.chance[kind]), ceiling)
        if kind == "match" and isinstance(recipe, Web):  # music and silence give themselves away; these two do not
            voiced = right.loc[right.index.isin(test["clip"][test["soundtrack"].isin(("own", "overdub"))])]
            majority = max(recipe.own_share(), recipe.overdub) / (recipe.own_share() + recipe.overdub)
            ceiling = None if sense == "both" else majority
            found[f"own or overdubbed from {sense}"] = score(voiced, len(voiced), majority, ceiling)
    return found


def run(name: str, clips: int | None, epochs: int | None) -> dict[str, Any]:
    """Build a recipe's corpus, train a network for each sense, score."""
    plan, start = PLANS[name], time.process_time()
    clips, epochs = clips or plan.clips, epochs or plan.epochs
    torch.manual_seed(0)
    folder = build_playground(plan.recipe, clips=clips, seed=0, progress=False)
    sight, sound, labels = windows(folder, plan)
    y = {
        kind: torch.from_numpy(labels[kind].astype("category").cat.codes.to_numpy("int64").copy())
        for kind in plan.kinds
    }
    classes = {kind: int(each.max()) + 1 for kind, each in y.items()}
    train = torch.from_numpy((labels.split == "train").to_numpy().copy())
    own = torch.from_numpy((labels.match == "yes").to_numpy().copy()) if "match" in labels else None
    test, result = labels[labels.split == "test"], {"recipe": name, "clips": clips, "epochs": epochs}
    result["test_windows"] = len(test)
    for sense in SENSES if plan.together else SENSES[:2]:
        x = {"sight": (sight,), "sound": (sound,), "both": (sight, sound)}[sense]
        net = (
            {"sight": sight_net, "sound": sound_net}[sense](classes)
            if sense != "both"
            else Both(classes, plan.together)
        )
        logits = fit(net, x, asked(plan, sense, y, own), train, epochs=epochs)
        found = examine(plan, sense, logits, {kind: each[~train] for kind, each in y.items()}, test)
        for question, scored in found.items():
            low, high = scored["interval"]
            known = f"chance {scored['chance']}, ceiling {scored['ceiling']}"
            print(f"{question:28s} {scored['accuracy']:.3f} [{low:.3f}, {high:.3f}] ({known})", flush=True)
        result |= found
    result["cpu_s"] = round(time.process_time() - start)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=sorted(PLANS), default=sorted(PLANS))
    parser.add_argument("--clips", type=int, help="default: the plan's")
    parser.add_argument("--epochs", type=int, help="default: the plan's")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.recipes:
        print(f"\n{name}")
        result = run(name, args.clips, args.epochs)
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        known |= result if name == "actions" else {name: result}
        args.json.parent.mkdir(exist_ok=True)
        args.json.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
        print(f"{result['cpu_s']} CPU seconds; written to {args.json}")


if __name__ == "__main__":
    main()
