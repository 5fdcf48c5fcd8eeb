"""How many finished clips a second the playground writes: drawn, synthesised, encoded and indexed.

    python benchmarks/playground_speed.py [--clips 300] [--workers 2]

Each figure is the median of three builds into an empty folder, with the start of the workers included. The target is 20
three-second clips a second on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from data_prep.playground import build_playground, make_recipe, render_clip

RESULTS = Path(__file__).parent / "results" / "playground_speed.json"


def clips_per_second(recipe: str, clips: int, workers: int, **params: object) -> float:
    """Build ``clips`` clips into an empty folder and time it."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_playground(recipe, clips=clips, seed=0, root=folder, workers=workers, progress=False, **params)
        return clips / (time.perf_counter() - start)


def render_ms(recipe: str, clips: int = 20) -> float:
    """Milliseconds to draw and synthesise one three-second clip, without encoding."""
    made = make_recipe(recipe, duration_s=3.0)
    start = time.perf_counter()
    for number in range(clips):
        render_clip(made.clip(0, number))
    return 1000 * (time.perf_counter() - start) / clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for recipe in ("actions", "web", "boxes"):
        speeds = [clips_per_second(recipe, args.clips, args.workers, duration_s=3.0) for _ in range(args.repeats)]
        figures[recipe] = {"clips_per_s": round(statistics.median(speeds), 1), "render_ms": round(render_ms(recipe), 1)}
        speed, render = figures[recipe].values()
        print(f"{recipe:8s} {speed:6.1f} clips/s; rendering alone takes {render:.1f} ms a clip")
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"clips": args.clips, "workers": args.workers, "duration_s": 3.0, "size": 96, "fps": 25, "recipes": figures}
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
