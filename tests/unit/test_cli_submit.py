"""``avssl submit``: the script SLURM gets, the requeued job, and the job run for real by submitit's local executor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_book import write_book

from avssl.errors import UsageError
from avssl.manifest import load_manifest
from avssl.run import Plan, plan_run
from avssl.submit import Nodes, RankJob, resources, submit

submitit = pytest.importorskip("submitit", reason="pip install -e '.[scale]'")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_run(load_manifest(write_book(tmp_path)), "toy", budget="full-big", out=tmp_path / "out")


def test_the_sbatch_script_asks_for_what_was_said(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor = submitit.SlurmExecutor(folder=tmp_path / "slurm")
    nodes = Nodes(nodes=3, gpus=4, cpus=6, hours=1.5, partition="night")
    auto = submitit.AutoExecutor(folder=tmp_path / "slurm", cluster="slurm")
    auto.update_parameters(**resources(plan, nodes))
    executor.update_parameters(**auto._executor.parameters)
    script = executor._make_submission_file_text("python -u job", uid="x")
    for line in ("nodes=3", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=6", "time=90", "partition=night"):
        assert f"#SBATCH --{line}" in script
    assert "#SBATCH --signal=USR2@120" in script  # told two minutes before the limit
    assert "--kill-on-bad-exit=1" in script  # a rank that fails ends all
    assert "job-name=avssl-toy-full-big" in script


def test_cpu_nodes_ask_for_no_gpu(plan: Plan) -> None:
    wanted = resources(plan, Nodes(nodes=2, gpus=0))
    assert wanted["tasks_per_node"] == 1
    assert "gpus_per_node" not in wanted
    assert not any(name.startswith("slurm") for name in resources(plan, Nodes(), cluster="local"))


def test_a_preempted_job_goes_on_in_the_same_run_directory(plan: Plan) -> None:
    again = RankJob(plan).checkpoint()
    assert isinstance(again.function, RankJob)
    assert again.function.plan == plan


def test_without_slurm_the_error_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="cannot submit to 'slurm'"):
        submit(plan, Nodes())


@pytest.mark.timeout(120)
def test_the_job_runs_its_ranks_through_the_local_executor(tmp_path: Path) -> None:
    ranks = """
# %%
(run_dir / f"rank{os.environ['RANK']}.json").write_text(json.dumps({k: os.environ[k] for k in
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}))
"""
    plan = plan_run(load_manifest(write_book(tmp_path, ranks)), "toy", budget="smoke", out=tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        job = submit(plan, Nodes(gpus=2, cpus=1, hours=0.05), cluster="local")
        assert job.results() == [str(plan.output(rank)) for rank in range(2)]
    told = [json.loads((plan.run_dir / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [one["RANK"] for one in told] == ["0", "1"]
    assert {one["WORLD_SIZE"] for one in told} == {"2"}
    assert len({(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in told}) == 1
    assert plan.output(1).is_file()
    assert plan.output().with_suffix(".html").is_file()
