"""What one stream of a codec tells of the playground's ``binding``: the figures in the recipe's description.

    python benchmarks/binding_streams.py [--clips 750] [--seed 0]

Forests and logistic regressions name the moving shape from the blocks around both things, one stream at a time; and
from the I pictures, which of the two shapes on the table it is. For the recipe as it is, without cards, and with a
period of a whole group. Chance is one in four, and one in two for the last column.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from avssl_core.data import Corpus
from avssl_core.media import CompressedReader, GopSpec
from data_prep.playground import Binding, build_playground
from data_prep.playground.motion import track

RESULT = Path(__file__).parent / "results" / "binding_streams.json"
WORLDS = {
    "as it is": {},
    "cards=False": {"cards": False},
    "period=12": {"period": 12, "radius": 0.1, "amplitude": 0.05},
}
STREAMS = ("vectors", "coded residual", "pixel residual", "I pictures")
PATCH = 40  # side of the cut around a thing, pixels


def cut(planes: np.ndarray, x: float, y: float) -> np.ndarray:
    """``(C, T, P, P)`` around a place; beyond the picture's edge its border repeats."""
    half = PATCH // 2
    wide = np.pad(planes, ((0, 0), (0, 0), (half, half), (half, half)), mode="edge")
    top, left = round(y), round(x)
    return wide[:, :, top : top + PATCH, left : left + PATCH]


def features(recipe: Binding, corpus: Corpus, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """For each stream ``(clips, features)``, what moves, and whether it is the first of the two in the alphabet."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in STREAMS}
    shapes, first = [], []
    for row in range(len(corpus)):
        number = int(corpus.index["clip_id"].iat[row].rsplit("-", 1)[-1])
        clip = recipe.clip(seed, number)
        things = clip.seen.actors[1::2] if recipe.cards else clip.seen.actors
        things = sorted(things, key=lambda a: a.shape)
        at = [(float(t.x[0]), float(t.y[0])) for t in (track(a, clip.seen, np.zeros(1)) for a in things)]
        with CompressedReader(corpus.source(row)) as reader:
            coded = reader.clip(0, GopSpec(2, recipe.gop, 1, residual="coded"))
            pixel = reader.clip(0, GopSpec(2, recipe.gop, 1, residual="pixel"))
        planes = {
            "vectors": coded.motion,
            "coded residual": coded.residual,
            "pixel residual": pixel.residual,
            "I pictures": coded.iframes,
        }
        for name, x in planes.items():
            # By place: in the order of the alphabet, *that* the first or the second one moves would already say that
            # it is an early or a late letter. That order is what the last question is about.
            order = at if name == "I pictures" else sorted(at)
            cuts = [cut(x.numpy().astype(np.float32), *place) for place in order]
            small = [torch.nn.functional.avg_pool2d(torch.from_numpy(np.abs(c)).mean(1), 4).numpy() for c in cuts]
            found[name].append(np.stack(small).ravel())
        shapes.append(clip.labels["moving_shape"])
        first.append(clip.labels["moving_shape"] == things[0].shape)
    return {name: np.stack(x) for name, x in found.items()}, np.array(shapes), np.array(first)


def best(x: np.ndarray, y: np.ndarray) -> float:
    """Accuracy of the better of two classifiers on the last third, trained on the rest."""
    end = 2 * len(y) // 3
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    forest = RandomForestClassifier(400, min_samples_leaf=2, random_state=0)
    return max(float(c.fit(x[:end], y[:end]).score(x[end:], y[end:])) for c in (linear, forest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=750, help="two thirds to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    print(f"{'':12s} " + " ".join(f"{name:>15s}" for name in STREAMS))
    with tempfile.TemporaryDirectory() as folder:
        for world, params in WORLDS.items():
            recipe = Binding(**params)
            made = build_playground(recipe, clips=args.clips, seed=args.seed, root=folder, progress=False)
            x, shapes, first = features(recipe, Corpus.load(made), args.seed)
            results[world] = {name: best(x[name], first if name == "I pictures" else shapes) for name in STREAMS}
            print(f"{world:12s} " + " ".join(f"{results[world][name]:15.2f}" for name in STREAMS))
    settings = {k: v for k, v in vars(args).items() if k != "json"}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
