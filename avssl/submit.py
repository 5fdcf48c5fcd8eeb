"""A chapter on SLURM nodes, through submitit: a task a GPU, each a rank; a preempted job is requeued and goes on.

submitit notices the preemption signal, pickles the job again and requeues it; the new attempt finds the checkpoints of
the old one in the same run directory. ``srun --kill-on-bad-exit`` ends all ranks when one fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avssl.errors import UsageError
from avssl.ranks import run_rank
from avssl.run import Outcome, Plan

if TYPE_CHECKING:
    import submitit


@dataclass(frozen=True)
class Nodes:
    """What to ask the cluster for."""

    nodes: int = 1
    gpus: int = 8  # per node, a rank each; 0 for one CPU rank per node
    cpus: int = 8  # per rank
    hours: float = 24.0
    partition: str | None = None

    @property
    def ranks_per_node(self) -> int:
        """One rank a GPU."""
        return max(1, self.gpus)


class RankJob:
    """What each task of the job calls; submitit pickles it, and asks it for its successor when the job is preempted."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self) -> str:
        import submitit

        environment = submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        outcome: Outcome = run_rank(self.plan, environment.rank)
        return str(outcome.notebook)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same plan, in the same run directory: the chapter resumes from its own checkpoints."""
        import submitit

        return submitit.helpers.DelayedSubmission(RankJob(self.plan))


def submit(plan: Plan, nodes: Nodes, *, cluster: str = "slurm") -> submitit.Job[str]:
    """Queue a run.

    Args:
        plan: the checked run; its ``run_dir`` must be on a disk that all nodes see.
        nodes: what to ask for.
        cluster: ``slurm``, or ``local`` to run the same job as processes of this machine.

    Raises:
        UsageError: submitit is not installed, or this machine has no SLURM.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError("submitit is not installed: pip install -e '.[scale]' in the checkout.") from None
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=plan.run_dir / "slurm", cluster=cluster)
    except RuntimeError as error:
        raise UsageError(f"cannot submit to {cluster!r}: {error}") from error
    executor.update_parameters(**resources(plan, nodes, cluster=cluster))
    return executor.submit(RankJob(plan))


def resources(plan: Plan, nodes: Nodes, *, cluster: str = "slurm") -> dict[str, Any]:
    """The parameters submitit takes: shared ones, and SLURM's own where there is SLURM."""
    wanted: dict[str, Any] = {
        "name": f"avssl-{plan.chapter.name}-{plan.budget}",
        "nodes": nodes.nodes,
        "tasks_per_node": nodes.ranks_per_node,
        "cpus_per_task": nodes.cpus,
        "timeout_min": round(nodes.hours * 60),
    }
    if nodes.gpus:
        wanted["gpus_per_node"] = nodes.gpus
    if cluster == "slurm":
        wanted["slurm_srun_args"] = ["--kill-on-bad-exit=1"]
        wanted["slurm_signal_delay_s"] = 120  # before the limit: time to requeue
        if nodes.partition:
            wanted["slurm_partition"] = nodes.partition
    return wanted
