"""Jobs on one node through the shipped scripts, while the other node is lost to a job over both."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from esgd_hpc.checkpoint.reader import open_checkpoint
from slurm.cluster import Job
from slurm.desk import IN_GENERATION_2, JOBS, RECIPE, SECONDS_TO_END, SMALL, Desk

SECONDS_TO_STOP = 30
ON_N1 = ("--nodelist=n1", "--ntasks-per-node=2", *SMALL)
WITH_GPUS = (*ON_N1, "--gpus-per-node=2")
FIRST_AND_SECOND = "rank 0 takes its first, rank 1 takes its second"
BINDINGS = {
    "generic": (WITH_GPUS, "ranks 0-1: CUDA_VISIBLE_DEVICES=0,1", FIRST_AND_SECOND),
    "a GPU a task": (
        (*WITH_GPUS, "--gpus-per-task=1"),
        "rank 0: CUDA_VISIBLE_DEVICES=0; rank 1: CUDA_VISIBLE_DEVICES=1",
        "rank 0 takes its first, rank 1 takes its first",
    ),
    "frontier": (WITH_GPUS, "ranks 0-1: CUDA_VISIBLE_DEVICES=0,1", FIRST_AND_SECOND),
    "lumi": (
        WITH_GPUS,
        "ROCR_VISIBLE_DEVICES=0; rank 1: CUDA_VISIBLE_DEVICES=0,1, ROCR_VISIBLE_DEVICES=1",
        "rank 0 takes its first, rank 1 takes its first",
    ),
    "perlmutter": (WITH_GPUS, "ranks 0-1: all GPUs of the node", FIRST_AND_SECOND),
}
"""Sites, or a flag: options of sbatch, what the ranks are shown, and which of those each takes."""


@pytest.fixture(scope="module")
def lost_job(desk: Desk) -> Job:
    script = desk.edited("slurm/groups.sh", "lost", RANKS_PER_GROUP="2")
    return desk.submit(
        script, "--nodes=2", "--ntasks-per-node=1", *SMALL, slow_from=IN_GENERATION_2
    )


@pytest.fixture(scope="module")
def refused_job(desk: Desk) -> Job:
    return desk.submit(desk.edited("slurm/single-node.sh", "refused", MPI="none"), *ON_N1)


@pytest.fixture(scope="module")
def seeds_jobs(desk: Desk) -> tuple[Job, Job]:
    """Return the jobs of an array that `esgd jobs render` has written for a packaged recipe."""
    render = ("jobs", "render", "digits", "--scheduler=slurm", "--seeds=1-2", "--time=00:10:00")
    numbers = ("--gpus-per-node=0", "--ranks-per-node=1", "--cores-per-rank=1")
    recipe = ("--set", "generations=2", "--output=seeds", "--file=seeds.sh")
    esgd = (sys.executable, "-m", "esgd_hpc")
    desk.cluster.run(*esgd, *render, *numbers, *recipe, cwd=desk.folder)
    array = desk.submit(desk.folder / "seeds.sh", "--nodelist=n1")
    first, second = (Job(desk.cluster, f"{array.number}_{seed}") for seed in (1, 2))
    return first, second


@pytest.fixture(scope="module")
def bound_jobs(desk: Desk) -> dict[str, Job]:
    """Return jobs that check what ranks are given."""
    return {name: desk.submit(checking(desk, name), *BINDINGS[name][0]) for name in BINDINGS}


def checking(desk: Desk, name: str) -> Path:
    """Write a shipped script with `esgd check --json` in place of `esgd run RECIPE`."""
    site = name if (JOBS / "sites" / f"{name}.sh").exists() else "generic"
    script = desk.edited("slurm/single-node.sh", f"bound-{name}", SITE=site, MPI="pmix")
    text, run = script.read_text(), '"${ESGD[@]}" run "${RUN[@]}"'
    assert text.count(run) == 1
    script.write_text(text.replace(run, '"${ESGD[@]}" check --json'))
    return script


@pytest.fixture(scope="module")
def cancelled_job(desk: Desk) -> Job:
    return desk.submit(
        desk.edited("slurm/single-node.sh", "cancelled"), *ON_N1, slow_from=IN_GENERATION_2
    )


@pytest.fixture(scope="module")
def stopped_job(desk: Desk) -> Job:
    (desk.folder / "watched.toml").write_text(f"{RECIPE}\n[run]\nwatchdog = 0.1\n")
    script = desk.edited("slurm/single-node.sh", "stopped", RECIPE="watched.toml")
    return desk.submit(script, *ON_N1, slow_from=IN_GENERATION_2)


@pytest.fixture(scope="module")
def stuck_job(desk: Desk) -> Job:
    """Return a job of a site that requeues by exit status, as the scripts do by themselves."""
    desk.cluster.set("RequeueExit=99")
    (desk.folder / "stuck.toml").write_text(
        RECIPE.replace("ranks_per_group = 2", "ranks_per_group = 1")
        + "\n[run]\ntime_limit = 0.000001\n"
    )
    script = desk.edited("slurm/single-node.sh", "stuck", RECIPE="stuck.toml")
    return desk.submit(script, "--nodelist=n1", "--ntasks-per-node=1", *SMALL)


def test_a_job_that_loses_a_node_goes_on_to_the_end_of_one_that_did_not(
    desk: Desk, lost_job: Job, plain_job: Job
) -> None:
    plain_job.wait_for("COMPLETED", SECONDS_TO_END)  # before its node is lost
    lost_job.wait_until_it_says("slow from here", 2, SECONDS_TO_END)
    desk.cluster.lose_node("n2")
    try:
        lost_job.wait_until(lambda: lost_job["Restarts"] == "1", "it is requeued", SECONDS_TO_END)
    finally:
        desk.cluster.start_node("n2")
    lost_job.wait_for("COMPLETED", SECONDS_TO_END)
    assert "DUE TO NODE FAILURE" in lost_job.log()
    assert desk.digest("lost") == desk.digest("plain")


def test_tasks_that_would_be_worlds_of_their_own_are_refused_with_the_remedy(
    desk: Desk, refused_job: Job
) -> None:
    refused_job.wait_for("FAILED", SECONDS_TO_END)
    assert refused_job.status() == 2
    log = refused_job.log()
    assert log.count("esgd: error:") == 1
    assert "srun --mpi=pmix" in log
    assert not (desk.folder / "refused").exists()


def test_a_rendered_array_trains_a_seed_in_each_job(
    desk: Desk, seeds_jobs: tuple[Job, Job]
) -> None:
    for seed, job in enumerate(seeds_jobs, 1):
        job.wait_for("COMPLETED", SECONDS_TO_END)
        checkpoint = open_checkpoint(desk.folder / "seeds" / f"seed-{seed}")
        assert checkpoint.generation == 2
        assert checkpoint.recipe["seed"] == seed


@pytest.mark.parametrize("name", BINDINGS)
def test_each_rank_has_a_gpu_of_its_own(name: str, bound_jobs: dict[str, Job]) -> None:
    job = bound_jobs[name]
    job.wait_for("COMPLETED", SECONDS_TO_END)
    log = job.log()
    told = json.loads(log[log.index("{") : log.rindex("}") + 1])
    found = {row["name"]: row["finding"] for row in told["rows"] if row["area"] == "gpu"}
    _, shown, taken = BINDINGS[name]
    assert found["visible"].endswith(shown), found
    assert taken in found["binding"]


def test_a_cancelled_job_leaves_nothing_in_the_way_of_the_next(
    desk: Desk, cancelled_job: Job, plain_job: Job
) -> None:
    cancelled_job.wait_until_it_says("slow from here", 2, SECONDS_TO_END)
    desk.cluster.run("scancel", cancelled_job.number)
    cancelled_job.wait_for("CANCELLED", SECONDS_TO_STOP)
    cancelled_job.wait_until(
        lambda: not cancelled_job.processes(), "all of it has ended", SECONDS_TO_STOP
    )
    assert cancelled_job["Restarts"] == "0"
    again = desk.submit(desk.folder / "cancelled.sh", *ON_N1)
    again.wait_for("COMPLETED", SECONDS_TO_END)
    plain_job.wait_for("COMPLETED", SECONDS_TO_END)
    assert desk.digest("cancelled") == desk.digest("plain")


def test_a_stopped_rank_is_named_and_the_job_ends(stopped_job: Job) -> None:
    stopped_job.wait_until_it_says("slow from here", 2, SECONDS_TO_END)
    processes = stopped_job.processes().items()
    (rank_1,) = [pid for pid, variables in processes if variables.get("PMIX_RANK") == "1"]
    os.kill(rank_1, signal.SIGSTOP)
    stopped_job.wait_for("FAILED", SECONDS_TO_STOP)
    assert "rank 1, host n1" in stopped_job.log()
    stopped_job.wait_until(lambda: not stopped_job.processes(), "all has ended", SECONDS_TO_STOP)


def test_a_job_that_gets_no_further_twice_in_a_row_stops_and_says_why(stuck_job: Job) -> None:
    stuck_job.wait_for("FAILED", SECONDS_TO_END)
    assert stuck_job["Restarts"] == "3"
    assert stuck_job.status() == 1
    assert "has started 2 times from" in stuck_job.log()
