"""Which small video network gives the most clips a second? Forward + backward, batch 32, one thread.

Compares conv3d (2+1)-D networks with the merged-axes network of ``avssl_core.encoders.factorised``, over stem stride,
width, clip size and precision, and the spectrogram network beside them. Writes a table and
``benchmarks/results/encoder_shapes.json``.

    python benchmarks/encoder_shapes.py            # everything, about five minutes on an idle machine
    python benchmarks/encoder_shapes.py --brief    # the shapes that budgets use, half a minute

Read ``clips_per_cpu_s`` where the machine is not idle: it counts only the time that this process was running. All arms
are measured in turns, so that a busy moment does not fall on one of them alone; the median over turns is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from avssl_core.encoders import FactorisedVideoNet, R2Plus1D, ResNet9Audio, seeded_init
from avssl_core.encoders.layers import kaiming_fan_out_, make_norm

BATCH = 32
RESULTS = Path(__file__).parent / "results" / "encoder_shapes.json"


class Conv3dNet(nn.Module):
    """The merged-axes network with its arithmetic left in conv3d: what the library's form is compared with."""

    def __init__(self, width: int, stem_stride: int, stages: int = 4, dim: int = 256) -> None:
        super().__init__()
        patch = (1, stem_stride, stem_stride)
        layers: list[nn.Module] = [nn.Conv3d(3, width, patch, stride=patch, bias=False), *self._after(width)]
        channels = width
        for i in range(stages):
            out = width * 2**i
            stride = (1, 1, 1) if i == 0 else (1, 2, 2)
            layers += [nn.Conv3d(channels, out, (1, 3, 3), stride, (0, 1, 1), bias=False), *self._after(out)]
            layers += [nn.Conv3d(out, out, (3, 1, 1), 1, (1, 0, 0), bias=False), *self._after(out)]
            channels = out
        layers += [nn.Conv3d(channels, dim, (3, 1, 1), (2, 1, 1), (1, 0, 0), bias=False), *self._after(dim)]
        self.layers = nn.Sequential(*layers)
        kaiming_fan_out_(self)

    @staticmethod
    def _after(channels: int) -> tuple[nn.Module, nn.Module]:
        return make_norm("bn", channels, axes=3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` to ``(B, dim)``."""
        out: Tensor = self.layers(x).mean(dim=(2, 3, 4))
        return out


class ChannelsLastConv3dNet(Conv3dNet):
    """The same with activations channels-last after the stem, as the merged-axes network has them."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` to ``(B, dim)``."""
        x = self.layers[0](x).contiguous(memory_format=torch.channels_last_3d)
        out: Tensor = self.layers[1:](x).mean(dim=(2, 3, 4))
        return out


@dataclass(frozen=True)
class Arm:
    """One network on one input."""

    network: str
    width: int
    stem_stride: int
    shape: tuple[int, ...]
    precision: str


@dataclass
class Row:
    """What was measured for an arm; medians over turns."""

    arm: Arm
    parameters: int
    clips_per_s: float
    clips_per_cpu_s: float
    turns: int


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv3d (2+1)D": Conv3dNet,
    "conv3d (2+1)D, channels last": ChannelsLastConv3dNet,
    "merged axes": FactorisedVideoNet,
    "merged axes, stem only in stage 1": lambda width, stem: FactorisedVideoNet(width, stem, blocks=(0, 1, 1, 1)),
    "merged axes, 3 stages": lambda width, stem: FactorisedVideoNet(width, stem, blocks=(1, 1, 1)),
    "R(2+1)D, 1 block a stage": lambda width, _: R2Plus1D(width, (1, 1, 1, 1)),
    "ResNet-9 (spectrogram)": lambda width, _: ResNet9Audio(width),
}
CLIPS = ((3, 8, 32, 32), (3, 8, 48, 48), (3, 16, 32, 32), (3, 16, 48, 48))
PRECISIONS = ("float32", "bf16")


def all_arms() -> Iterator[Arm]:
    """The full table."""
    for network, width, stem, shape, precision in product(
        ("conv3d (2+1)D", "conv3d (2+1)D, channels last", "merged axes"), (16, 32), (4, 2), CLIPS, PRECISIONS
    ):
        yield Arm(network, width, stem, shape, precision)
    for network, shape in product(("merged axes, stem only in stage 1", "merged axes, 3 stages"), CLIPS):
        yield Arm(network, 16, 4, shape, "float32")
    yield Arm("R(2+1)D, 1 block a stage", 16, 2, CLIPS[0], "float32")
    for width, precision in product((16, 32), PRECISIONS):
        yield Arm("ResNet-9 (spectrogram)", width, 2, (1, 40, 64), precision)


def brief_arms() -> Iterator[Arm]:
    """Width 16, float32, the smallest and the largest clip."""
    for arm in all_arms():
        if arm.width == 16 and arm.precision == "float32" and arm.shape not in CLIPS[1:3]:
            yield arm


def measure(arm: Arm, *, seconds: float) -> tuple[float, float]:
    """Clips a second by the clock and by this process's own time, over at least ``seconds`` and three steps."""
    net, x = build(arm), torch.randn(BATCH, *arm.shape, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=arm.precision == "bf16"):
            loss = net(x).float().pow(2).mean()
        loss.backward()

    for _ in range(2):
        step()
    wall, cpu, steps = time.perf_counter(), time.process_time(), 0
    while steps < 3 or time.perf_counter() - wall < seconds:
        step()
        steps += 1
    clips = BATCH * steps
    return clips / (time.perf_counter() - wall), clips / (time.process_time() - cpu)


def build(arm: Arm) -> nn.Module:
    """The network of an arm, in training mode, at fixed weights."""
    with seeded_init(0):
        return NETWORKS[arm.network](arm.width, arm.stem_stride)


def run(arms: list[Arm], *, turns: int, seconds: float) -> list[Row]:
    """Measure every arm ``turns`` times, in turns."""
    figures: dict[Arm, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for _ in range(turns):
        for arm in arms:
            figures[arm].append(measure(arm, seconds=seconds))
    return [
        Row(
            arm=arm,
            parameters=sum(parameter.numel() for parameter in build(arm).parameters()),
            clips_per_s=round(statistics.median(wall for wall, _ in values), 1),
            clips_per_cpu_s=round(statistics.median(cpu for _, cpu in values), 1),
            turns=turns,
        )
        for arm, values in figures.items()
    ]


def table(rows: list[Row]) -> str:
    """Markdown table of the rows."""
    lines = ["| network | width | stem | input | precision | parameters | clips/s | clips/CPU s |", "| --- " * 8 + "|"]
    for row in rows:
        arm = row.arm
        shape = "×".join(map(str, arm.shape))
        lines.append(
            f"| {arm.network} | {arm.width} | {arm.stem_stride} | {shape} | {arm.precision} | {row.parameters:,} "
            f"| {row.clips_per_s:,.0f} | {row.clips_per_cpu_s:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brief", action="store_true", help="only the shapes that budgets use")
    parser.add_argument("--turns", type=int, default=5, help="measurements an arm")
    parser.add_argument("--seconds", type=float, default=0.4, help="least duration of each")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(list(brief_arms() if arguments.brief else all_arms()), turns=arguments.turns, seconds=arguments.seconds)
    record = {
        "what": "forward + backward, one thread, median over turns",
        "batch": BATCH,
        "brief": arguments.brief,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "rows": [{**asdict(row), **asdict(row.arm)} for row in rows],
    }
    for row in record["rows"]:
        del row["arm"]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
