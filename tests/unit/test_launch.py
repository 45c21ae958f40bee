"""What launchers and schedulers say is compared with MPI, as they say it on real clusters."""

import re

import pytest

from esgd_hpc.errors import InputError
from esgd_hpc.launch import check_world, forgotten_launcher, job_end, launched

OPEN_MPI = "Open MPI v5.0.11, package: Open MPI root@x Distribution, ident: 5.0.11"
MPICH = "MPICH Version:      4.3.0\nMPICH Release date: x"
INTEL = "Intel(R) MPI Library 2021.13 for Linux* OS\n"
CRAY = "MPI VERSION    : CRAY MPICH version 8.1.28.29 (ANL base 3.4a2)\nMPI BUILD INFO : x"

BATCH = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_MPI_TYPE": ""}
STEP = {
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
}
PMI2 = STEP | {"PMI_SIZE": "4", "PMI_RANK": "1", "SLURM_MPI_TYPE": "pmi2"}
DAEMON = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
"""What mpirun's ranks see of the srun that started its daemons."""
MPIRUN = DAEMON | {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}
HYDRA = DAEMON | {"PMI_SIZE": "8", "PMI_RANK": "5"}
JSRUN = {"JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_RANK": "2", "LSB_DJOB_NUMPROC": "43"}


@pytest.mark.parametrize(
    ("environment", "launcher", "size"),
    [
        (STEP, "srun", 4),
        (PMI2, "srun", 4),
        (MPIRUN, "mpirun", 8),
        (HYDRA, "the launcher", 8),
        (JSRUN, "jsrun", 6),
    ],
)
def test_the_launcher_tells_how_many_it_started(
    environment: dict[str, str], launcher: str, size: int
) -> None:
    found = launched(environment)
    assert found is not None
    assert found[:2] == (launcher, size)
    check_world(size, environment, OPEN_MPI)
    with pytest.raises(InputError, match=f"{launcher} started {size} tasks"):
        check_world(1, environment, OPEN_MPI)


@pytest.mark.parametrize("environment", [{}, BATCH])
def test_without_a_launcher_one_rank_is_right(environment: dict[str, str]) -> None:
    assert launched(environment) is None
    check_world(1, environment)


@pytest.mark.parametrize(
    ("library", "environment", "flag"),
    [
        (OPEN_MPI, STEP, "srun --mpi=pmix` (it was --mpi=none"),
        (OPEN_MPI, PMI2, "srun --mpi=pmix` (it was --mpi=pmi2"),
        (MPICH, STEP, "srun --mpi=pmi2`"),
        (INTEL, STEP, "srun --mpi=pmi2`"),
        (CRAY, STEP, "srun --mpi=cray_shasta`"),
        (MPICH, PMI2, "mpirun inside the job"),
        (MPICH, MPIRUN, "the mpirun that belongs to MPICH Version: 4.3.0"),
    ],
)
def test_worlds_of_one_are_refused_with_the_flag_of_their_mpi(
    library: str, environment: dict[str, str], flag: str
) -> None:
    with pytest.raises(InputError, match=re.escape(flag)):
        check_world(1, environment, library)


def test_a_job_of_several_tasks_that_runs_one_rank_is_told() -> None:
    assert "SLURM_NTASKS" in forgotten_launcher(1, BATCH)
    assert "jsrun" in forgotten_launcher(1, {"LSB_DJOB_NUMPROC": "8"})
    for size, environment in ((1, {}), (4, BATCH), (1, STEP | {"SLURM_STEP_NUM_TASKS": "1"})):
        assert forgotten_launcher(size, environment) == ""


def test_the_end_of_the_job_comes_from_its_script_or_else_from_slurm() -> None:
    assert job_end({}) is None
    assert job_end({"ESGD_END_TIME": " ", "SLURM_JOB_END_TIME": "1790000000"}) == 1.79e9
    assert job_end({"ESGD_END_TIME": "1790000001.5", "SLURM_JOB_END_TIME": "2"}) == 1790000001.5


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "-1", "2026-11-25T20:17:38"])
def test_an_end_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=f"ESGD_END_TIME = {value}: expected seconds"):
        job_end({"ESGD_END_TIME": value})
