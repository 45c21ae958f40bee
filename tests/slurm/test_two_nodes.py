"""Jobs over two nodes through the shipped scripts: undisturbed, signalled, stuck, by mpirun."""

import json
from typing import TYPE_CHECKING

import pytest

from slurm.cluster import Job
from slurm.desk import GENERATIONS, IN_GENERATION_2, RECIPE, SECONDS_TO_END, SMALL, TWO_BY_TWO, Desk

if TYPE_CHECKING:
    from conftest import Launch


@pytest.fixture(scope="module")
def signalled_job(desk: Desk) -> Job:
    script = desk.edited("slurm/groups.sh", "signalled", RANKS_PER_GROUP="2")
    return desk.submit(script, *TWO_BY_TWO, slow_from=IN_GENERATION_2[2])


@pytest.fixture(scope="module")
def mpirun_job(desk: Desk) -> Job:
    script = desk.edited("slurm/groups.sh", "mpirun", RANKS_PER_GROUP="2", MPI="mpirun")
    return desk.submit(script, *TWO_BY_TWO)


@pytest.fixture(scope="module")
def stuck_job(desk: Desk) -> Job:
    (desk.folder / "stuck.toml").write_text(
        RECIPE.replace("ranks_per_group = 2", "ranks_per_group = 1")
        + "\n[run]\ntime_limit = 0.000001\n"
    )
    script = desk.edited("slurm/single-node.sh", "stuck", RECIPE="stuck.toml")
    return desk.submit(script, "--ntasks-per-node=1", *SMALL)


def test_a_job_that_is_signalled_goes_on_by_itself_to_the_end_of_one_that_was_not(
    desk: Desk, signalled_job: Job, plain_job: Job
) -> None:
    signalled_job.wait_until_it_says("slow from here", 4, SECONDS_TO_END)
    desk.cluster.run("scancel", "--batch", "--signal=USR1", signalled_job.number)
    signalled_job.wait_for("COMPLETED", SECONDS_TO_END)
    assert signalled_job["Restarts"] == "1"
    log = signalled_job.log()
    assert "stopped in generation 2, 2 of 4 individuals trained" in log
    assert log.count(f"generation {GENERATIONS}/") == 1
    plain_job.wait_for("COMPLETED", SECONDS_TO_END)
    assert desk.digest("signalled") == desk.digest("plain")


def test_two_groups_of_two_ranks_on_two_nodes(desk: Desk, plain_job: Job, launch: "Launch") -> None:
    plain_job.wait_for("COMPLETED", SECONDS_TO_END)
    assert plain_job.status() == 0
    shown = launch(0, "inspect", desk.folder / "plain", "--json")
    told = json.loads(shown.stdout)
    assert (told["ranks"], told["ranks_per_group"], told["groups"]) == (4, 2, 2)
    assert told["generation"] == GENERATIONS
    assert "averaging by horovod" in plain_job.log()


def test_mpirun_inside_the_job_gives_the_same(desk: Desk, mpirun_job: Job, plain_job: Job) -> None:
    for job in (mpirun_job, plain_job):
        job.wait_for("COMPLETED", SECONDS_TO_END)
    assert desk.digest("mpirun") == desk.digest("plain")


def test_a_job_that_gets_no_further_twice_in_a_row_stops_and_says_why(stuck_job: Job) -> None:
    stuck_job.wait_for("FAILED", SECONDS_TO_END)
    assert stuck_job["Restarts"] == "3"
    assert stuck_job.status() == 1
