"""What the launcher and the scheduler say of this process, and whether MPI agrees.

MPI itself decides how many ranks there are and which one this is. What launchers leave in the
environment is compared with it, for one failure is silent without that: a launcher that MPI does
not understand starts N worlds of one rank.
"""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

from esgd_hpc.errors import InputError

RANK_VARIABLES = (
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "JSM_NAMESPACE_RANK",
    "SLURM_PROCID",
)
"""Where launchers say which rank this is; read only to print a message once, before MPI is up."""

_SIZE_VARIABLES = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "PMI_SIZE": "the launcher",
    "SLURM_STEP_NUM_TASKS": "srun",
}
"""Where launchers say how many they started. An mpirun inside a Slurm job starts its daemons by
srun, whose variables then tell of the daemons: srun comes last."""

END_VARIABLES = ("ESGD_END_TIME", "SLURM_JOB_END_TIME")
"""Where job scripts and Slurm say when the job ends."""


class Launched(NamedTuple):
    """What the launcher says."""

    launcher: str
    size: int
    variable: str
    """Where it says so."""


def launched(environment: Mapping[str, str]) -> Launched | None:
    """Return what the launcher of this process says, None if it was not launched."""
    for variable, launcher in _SIZE_VARIABLES.items():
        value = environment.get(variable, "")
        if value.isdecimal():
            by_srun = variable == "PMI_SIZE" and environment.get("SLURM_STEP_NUM_TASKS") == value
            return Launched("srun" if by_srun else launcher, int(value), variable)
    return None


def launched_rank() -> int | None:
    """Return this process's rank by its launcher's word; None if it was not launched."""
    for name in RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return None


def check_world(size: int, environment: Mapping[str, str], library: str = "") -> None:
    """Raise InputError in each of N worlds of one rank that should be one world of N.

    `size` is that of MPI_COMM_WORLD and `library` what MPI says of its version.
    """
    found = launched(environment)
    if size > 1 or found is None or found.size <= 1:
        return
    raise InputError(
        f"{found.launcher} started {found.size} tasks ({found.variable} = {found.size}), but for"
        f" MPI ({library_name(library)}) each of them is a world of its own, of 1 rank;"
        f" {_remedy(found, environment, library)}; if each is meant to be a run of its own:"
        f" env -u {found.variable} esgd ..."
    )


def _remedy(found: Launched, environment: Mapping[str, str], library: str) -> str:
    if found.launcher != "srun":
        return f"start them by the mpirun that belongs to {library_name(library)}"
    now = environment.get("SLURM_MPI_TYPE", "none")
    kind = _srun_kind(library)
    if now == kind:
        return (
            f"srun --mpi={kind} is right for this MPI, but the two do not understand each other:"
            " start the ranks by mpirun inside the job, or ask your site for a matching pair"
        )
    return (
        f"start them by `srun --mpi={kind}` (it was --mpi={now}; `srun --mpi=list` shows what this"
        " Slurm has), or by mpirun inside the job"
    )


def _srun_kind(library: str) -> str:
    """Return the kind of start that an MPI library understands."""
    if "CRAY" in library.upper():
        return "cray_shasta"
    if "MPICH" in library.upper() or "INTEL" in library.upper() or "MVAPICH" in library.upper():
        return "pmi2"
    return "pmix"


def library_name(library: str) -> str:
    """Return the first words of what an MPI library says of its version."""
    lines = library.replace("\t", " ").splitlines()
    line = " ".join(lines[0].split(",")[0].split()) if lines else ""
    return line.strip(" \0") or "unknown version"


def forgotten_launcher(size: int, environment: Mapping[str, str]) -> str:
    """Return what to say where a job of several tasks runs one rank only; "" elsewhere."""
    if size > 1 or launched(environment) is not None:
        return ""
    for variable, start in (("SLURM_NTASKS", "srun"), ("LSB_DJOB_NUMPROC", "jsrun or mpirun")):
        value = environment.get(variable, "")
        if value.isdecimal() and int(value) > 1:
            return (
                f"this job has room for {value} tasks ({variable}), and this is one rank alone;"
                f" start esgd by {start} to use them"
            )
    return ""


def job_end(environment: Mapping[str, str]) -> float | None:
    """Return when the job ends, in seconds since 1970; None where nobody says.

    Raises InputError for a value that is no such number.
    """
    for variable in END_VARIABLES:
        text = environment.get(variable, "").strip()
        if not text:
            continue
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            raise InputError(
                f"{variable} = {text}: expected seconds since 1970, as `date +%s` prints them;"
                " correct it in the job script, or leave it out"
            )
        return seconds
    return None
