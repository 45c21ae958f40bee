"""A template filled in: one script that needs no other file, to be read, kept and submitted."""

import re
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from esgd_hpc.errors import InputError
from esgd_hpc.jobs.request import WITH_GROUPS, Job

LINE = "# -----"
"""Begins the two lines between which a person edits."""
COLUMN = 37
"""Where comments behind values begin."""

# NAME=value, and a comment behind it.
_ASSIGNMENT = re.compile(r"(?P<name>[A-Z_]+)=(?P<value>.*?)(?P<comment> +# .*)?")
# `    ` begins a line of the array ALLOCATION of interactive.sh.
_DIRECTIVES = {
    "slurm": re.compile(
        r"(?P<start>#SBATCH |    )(?P<key>--[a-z-]+)(=(?P<value>\S+))?(?P<comment> +# .*)?"
    ),
    "lsf": re.compile(
        r"(?P<off>#?)(?P<start>#BSUB |    )(?P<off_there># )?(?P<key>-[A-Za-z_]+)"
        r"( (?P<value>.*?))?(?P<comment> +# .*)?"
    ),
}
_SOURCE = re.compile(r'source "\$JOBS/(?P<file>.*)\.sh" \|\| exit 2')


def render(job: Job, folder: Path) -> str:
    """Return the script of a job, made of its template in `folder`."""
    lines = _read(folder / job.scheduler / f"{job.template}.sh")
    first, last = (n for n, line in enumerate(lines) if line.startswith(LINE))
    top, body = lines[first + 1 : last], lines[last + 1 :]
    purpose = next(line for line in lines if line.startswith("# ")).partition(":  ")[0]
    return "\n".join(
        [
            lines[0],
            f"{purpose.removesuffix(':')}.",
            f"# Made by `esgd jobs render` of esgd {metadata.version('esgd-hpc')}; needs no other"
            " file of it. Edit what is between the lines.",
            "# shellcheck disable=SC2034,SC2317  # traps and functions that not every script needs",
            lines[first],
            *_filled(top, job),
            lines[last],
            *_joined(body, job, folder),
            "",
        ]
    )


def site_directives(site: Path, scheduler: str) -> dict[str, str]:
    """Return the directives that a site's file has, by their names without dashes."""
    found = {}
    for line in _read(site):
        match = _DIRECTIVES[scheduler].fullmatch(line)
        if match and match["start"].startswith("#"):
            found[match["key"].lstrip("-")] = match["value"] or ""
    return found


def asked_to_stop(job: Job) -> int:
    """Return how many seconds before its end the run is asked to stop."""
    if job.scheduler == "lsf":
        return 60 * max(1, min(5, _minutes(job) // 10))
    return min(300, max(30, job.seconds // 10))


def _minutes(job: Job) -> int:
    return -(-job.seconds // 60)


def _read(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None


# What is between the lines ------------------------------------------------------------------------


def _filled(top: Sequence[str], job: Job) -> list[str]:
    """Return the lines that a person edits, with the values of the job."""
    directives = _slurm(job) if job.scheduler == "slurm" else _lsf(job)
    directives = {**site_directives(job.site, job.scheduler), **directives}
    variables = _variables(job)
    filled: list[str] = []
    place = 0  # where directives go that the template does not have
    for line in top:
        directive = _DIRECTIVES[job.scheduler].fullmatch(line)
        assignment = _ASSIGNMENT.fullmatch(line)
        if directive:
            key = directive["key"].lstrip("-")
            off = "off" in directive.groupdict() and (directive["off"] or directive["off_there"])
            asked = directives.pop(key, None if off else directive["value"] or "")
            if asked is not None:
                filled.append(_directive(job, directive["start"], key, asked, directive["comment"]))
            place = place or len(filled)
        elif assignment and assignment["name"] in variables:
            value = variables[assignment["name"]]
            if value is not None:
                text = f"{assignment['name']}={value}"
                filled.append(_with_comment(text, assignment["comment"]))
        else:
            filled.append(line)
    if job.data:
        filled.append(f"export ESGD_DATA={shlex.quote(job.data)}")
    start = "    " if job.template == "interactive" else f"#{_MARKS[job.scheduler]} "
    filled[place:place] = [
        _directive(job, start, key, value, None)
        for key, value in directives.items()
        if value is not None
    ]
    return filled


_MARKS = {"slurm": "SBATCH", "lsf": "BSUB"}


def _directive(job: Job, start: str, key: str, value: str, comment: str | None) -> str:
    if job.scheduler == "slurm":
        return _with_comment(f"{start}--{key}{'=' if value else ''}{value}", comment)
    return _with_comment(f"{start}-{key}{' ' if value else ''}{value}", comment)


def _with_comment(text: str, comment: str | None) -> str:
    return f"{text:<{COLUMN - 1}} {comment.strip()}" if comment else text


def _slurm(job: Job) -> dict[str, str | None]:
    """Return directives by name; None: without it."""
    hours, rest = divmod(job.seconds, 3600)
    asked: dict[str, str | None] = {
        "job-name": job.name,
        "time": f"{hours:02}:{rest // 60:02}:{rest % 60:02}",
        "nodes": str(job.nodes),
        "ntasks-per-node": str(job.ranks_per_node),
        "cpus-per-task": str(job.cores_per_rank),
        "gpus-per-node": str(job.gpus_per_node) if job.gpus_per_node else None,
    }
    if job.template != "interactive":
        asked["signal"] = f"B:USR1@{asked_to_stop(job)}"
    if job.seeds:
        asked["array"] = job.seeds
    if job.account:
        asked["account"] = job.account
    if job.partition:
        asked["partition"] = job.partition
    if job.memory_per_node:
        asked["mem"] = f"{job.memory_per_node}G"
    return asked


def _lsf(job: Job) -> dict[str, str | None]:
    """Return directives by name; None: without it."""
    hours, minutes = divmod(_minutes(job), 60)
    seeds, _, at_once = job.seeds.partition("%")
    name = f"{job.name}[{seeds}]" if seeds else job.name
    hosts = _launcher(job) == "mpirun"
    of_host = f"span[ptile={job.ranks_per_node}] affinity[core({job.cores_per_rank})]"
    asked: dict[str, str | None] = {
        "J": f'"{name}{"%" + at_once if at_once else ""}"' if seeds else name,
        "P": job.account or None,
        "W": f"{hours}:{minutes:02}",
        "nnodes": None if hosts else str(job.nodes),
        "n": str(job.ranks) if hosts else None,
        "R": f'"{of_host}"' if hosts else None,
        "gpu": f'"num={job.gpus_per_node}:j_exclusive=yes"'
        if hosts and job.gpus_per_node
        else None,
    }
    if job.template != "interactive":
        asked["wt"] = f"'{asked_to_stop(job) // 60}' -wa 'USR1'"
        asked["o"] = f"{job.name}.%J{'.%I' if seeds else ''}.log"
    if job.partition:
        asked["q"] = job.partition
    return asked


def _launcher(job: Job) -> str:
    """Return what starts ranks under LSF: as asked for, or as the site's file has it."""
    site = "\n".join(_read(job.site))
    return job.mpi or ("jsrun" if "MPI=${MPI:-jsrun}" in site else "mpirun")


def _variables(job: Job) -> dict[str, str | None]:
    """Return shell values by name, quoted; None: without it."""
    output = shlex.quote(job.output)
    run = ['"$RECIPE"', "--output", '"$OUTPUT"']
    settings = list(job.settings)
    if job.template in WITH_GROUPS:
        run += ["--set", 'topology.ranks_per_group="$RANKS_PER_GROUP"']
        settings = [
            s for s in settings if s.partition("=")[0].strip() != "topology.ranks_per_group"
        ]
    if job.seeds:
        run += ["--set", 'seed="$SEED"']
        output += "/seed-$SEED"
    for setting in settings:
        run += ["--set", shlex.quote(setting)]
    return {
        "RECIPE": shlex.quote(job.recipe_name),
        "OUTPUT": output,
        "RUN": f"({' '.join(run)})",
        "RANKS_PER_GROUP": str(job.recipe.topology.ranks_per_group),
        "THREADS": str(job.recipe.topology.threads_per_rank),
        "ENVIRONMENT": shlex.quote(job.environment) if job.environment else "",
        "MPI": job.mpi,
        "MINUTES": str(_minutes(job)),
        "RANKS": str(job.ranks),
        "RANKS_PER_NODE": str(job.ranks_per_node),
        "CORES": str(job.cores_per_rank),
        "GPUS_PER_RANK": "1" if job.gpus_per_node else "0",
        "JOBS": None,  # what lies there is written into the script
        "SITE": None,
    }


# What follows -------------------------------------------------------------------------------------


def _joined(body: Sequence[str], job: Job, folder: Path) -> list[str]:
    """Return the rest of a script, with the files that it sources in their places."""
    joined: list[str] = []
    for line in body:
        match = _SOURCE.fullmatch(line)
        if not match:
            joined.append(line)
            continue
        joined.pop()  # the hint for shellcheck
        shared = match["file"] == f"{job.scheduler}/functions"
        file = folder / job.scheduler / "functions.sh" if shared else job.site
        name = file.name if shared else f"site {file.name}"
        joined += [f"# ==== {name}", *_inlined(file), f"# ==== end of {name}", ""]
    return joined


def _inlined(file: Path) -> list[str]:
    """Return the lines of a sourced file, without its `#!`, its directives and hints."""
    marks = tuple(f"#{mark} " for mark in _MARKS.values())
    hints = ("#!", "# Sourced by", "# What the", "# shellcheck disable=SC2034")
    kept: list[str] = []
    for paragraph in "\n".join(_read(file)).strip("\n").split("\n\n"):
        lines = paragraph.split("\n")
        if any(line.startswith(marks) for line in lines):
            continue
        lines = [line for line in lines if not line.startswith(hints)]
        kept += [*lines, ""] if lines else []
    return kept[:-1]
