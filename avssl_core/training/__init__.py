"""Training: the step loop, schedules, optimisers, checkpoints, many processes, logs."""

from avssl_core.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from avssl_core.training.config import FREE_TO_CHANGE, FitConfig, Scalar, run_context
from avssl_core.training.diagnosis import NonFiniteError
from avssl_core.training.distributed import TorchCollectives, World, join
from avssl_core.training.ema import Ema, momentum_update
from avssl_core.training.live import LiveCurve
from avssl_core.training.logs import print_line
from avssl_core.training.loop import fit
from avssl_core.training.optimisers import build_optimiser, parameter_groups, scale_lr
from avssl_core.training.preemption import PREEMPTED_EXIT_CODE, Preempted
from avssl_core.training.pretrain import AVBatch, prepare_windows, window_loader
from avssl_core.training.result import FitResult
from avssl_core.training.rng import step_generator
from avssl_core.training.schedules import learning_rate
from avssl_core.training.sharing import shared_run
from avssl_core.training.steps import to_device
from avssl_core.training.throughput import in_memory_speed

__all__ = [
    "FREE_TO_CHANGE",
    "PREEMPTED_EXIT_CODE",
    "AVBatch",
    "CheckpointError",
    "Ema",
    "FitConfig",
    "FitResult",
    "LiveCurve",
    "NonFiniteError",
    "Preempted",
    "Scalar",
    "TorchCollectives",
    "World",
    "build_optimiser",
    "fit",
    "in_memory_speed",
    "join",
    "learning_rate",
    "load_checkpoint",
    "momentum_update",
    "parameter_groups",
    "prepare_windows",
    "print_line",
    "run_context",
    "save_checkpoint",
    "scale_lr",
    "shared_run",
    "step_generator",
    "to_device",
    "window_loader",
]
