"""Jobs over two nodes through the shipped scripts: undisturbed, signalled, and by mpirun."""

import json
import re
from typing import TYPE_CHECKING

import pytest

from slurm.cluster import NODES, Job
from slurm.desk import GENERATIONS, IN_GENERATION_2, SECONDS_TO_END, SMALL, Desk

if TYPE_CHECKING:
    from conftest import Launch

ONE_RANK_EACH = ("--nodes=2", "--ntasks-per-node=1", *SMALL)


@pytest.fixture(scope="module")
def signalled_job(desk: Desk) -> Job:
    script = desk.edited("slurm/groups.sh", "signalled", RANKS_PER_GROUP="2")
    return desk.submit(script, *ONE_RANK_EACH, slow_from=IN_GENERATION_2)


@pytest.fixture(scope="module")
def mpirun_job(desk: Desk) -> Job:
    script = desk.edited("slurm/groups.sh", "mpirun", RANKS_PER_GROUP="2", MPI="mpirun")
    return desk.submit(script, *ONE_RANK_EACH)


def test_a_job_that_is_signalled_goes_on_by_itself_to_the_end_of_one_that_was_not(
    desk: Desk, signalled_job: Job, plain_job: Job
) -> None:
    signalled_job.wait_until_it_says("slow from here", 2, SECONDS_TO_END)
    desk.cluster.run("scancel", "--batch", "--signal=USR1", signalled_job.number)
    signalled_job.wait_for("COMPLETED", SECONDS_TO_END)
    assert signalled_job["Restarts"] == "1"
    log = signalled_job.log()
    assert re.search(r"stopped in generation 2, [123] of 4 individuals trained", log)
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
    log = plain_job.log()
    assert "2 groups of 2 ranks averaging by horovod" in log
    assert [log.count(f"a rank on {node}") for node in NODES] == [2, 2]


def test_mpirun_inside_the_job_gives_the_same(desk: Desk, mpirun_job: Job, plain_job: Job) -> None:
    for job in (mpirun_job, plain_job):
        job.wait_for("COMPLETED", SECONDS_TO_END)
    assert [mpirun_job.log().count(f"a rank on {node}") for node in NODES] == [1, 1]
    assert desk.digest("mpirun") == desk.digest("plain")
