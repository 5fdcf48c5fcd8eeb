"""How many finished clips a second the playground writes: drawn, synthesised, encoded and indexed.

    python benchmarks/playground_speed.py [--clips 300] [--workers 2]

Each figure is the median of three builds into an empty folder, with the start of the workers included. The target is 20
three-second clips a second on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from data_prep.playground import build_playground, make_recipe
from data_prep.playground.build import make_clips

RESULTS = Path(__file__).parent / "results" / "playground_speed.json"


def clips_per_second(recipe: str, clips: int, workers: int, **params: object) -> float:
    """Build ``clips`` clips into an empty folder and time it."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_playground(
            make_recipe(recipe, **params), clips=clips, seed=0, root=folder, workers=workers, progress=False
        )
        return clips / (time.perf_counter() - start)


def cpu_ms(recipe: str, clips: int = 40) -> float:
    """CPU milliseconds of one finished three-second clip in one process; hardly depends on what else is running."""
    made = make_recipe(recipe, duration_s=3.0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clips").mkdir()
        start = time.process_time()
        make_clips(made, 0, Path(folder), range(clips))
        return 1000 * (time.process_time() - start) / clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 1)  # timings beside other programs say little: see cpu_ms
    figures: dict[str, dict[str, float]] = {}
    for recipe in ("actions", "web", "boxes"):
        speeds = [clips_per_second(recipe, args.clips, args.workers, duration_s=3.0) for _ in range(args.repeats)]
        figures[recipe] = {"clips_per_s": round(statistics.median(speeds), 1), "cpu_ms": round(cpu_ms(recipe), 1)}
        speed, cpu = figures[recipe].values()
        print(f"{recipe:8s} {speed:6.1f} clips/s; {cpu:.1f} CPU ms a clip")
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"clips": args.clips, "workers": args.workers, "duration_s": 3.0, "size": 96, "fps": 25, "recipes": figures}
    about["load_average_before"] = load
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
