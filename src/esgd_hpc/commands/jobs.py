"""`esgd jobs`: job scripts, listed, filled in for a recipe, and submitted."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from esgd_hpc.errors import InputError, RunError

if TYPE_CHECKING:
    from esgd_hpc.jobs.request import Job


def execute(arguments: argparse.Namespace) -> int:
    """Do what was asked for and return 0."""
    if arguments.action == "path":
        from esgd_hpc.jobs.folder import jobs_folder

        print(jobs_folder())
    elif arguments.action == "list":
        _list()
    else:
        _make(arguments)
    return 0


def _list() -> None:
    from esgd_hpc.jobs.folder import SCHEDULERS, jobs_folder, purpose, site_names, template_names

    folder = jobs_folder()
    names = sorted({name for scheduler in SCHEDULERS for name in template_names(scheduler)})
    sites = site_names()
    width = max(map(len, [*names, *sites]))
    print("templates (--template), for slurm and lsf:")
    for name in names:
        print(f"  {name:<{width}}  {purpose(folder / 'slurm' / f'{name}.sh')}")
    print("sites (--site):")
    for name in sites:
        print(f"  {name:<{width}}  {purpose(folder / 'sites' / f'{name}.sh')}")
    print(f"files: {folder}")


def _make(arguments: argparse.Namespace) -> None:
    from esgd_hpc.jobs.folder import jobs_folder, site_names, template_names
    from esgd_hpc.jobs.render import render, site_directives
    from esgd_hpc.jobs.request import asked_for, notes

    folder = jobs_folder()
    scheduler: str = arguments.scheduler
    templates = template_names(scheduler)
    if arguments.template is not None and arguments.template not in templates:
        raise InputError(f"--template {arguments.template}: one of {', '.join(templates)}")
    site = _site(arguments.site, folder, site_names(), scheduler)
    submitting = arguments.action == "submit"
    job = asked_for(
        scheduler=scheduler,
        template=arguments.template,
        site=site,
        site_directives=site_directives(site, scheduler),
        recipe_name=arguments.recipe,
        settings=arguments.overrides,
        output=arguments.output,
        name=arguments.name,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        ranks_per_node=arguments.ranks_per_node,
        ranks_per_group=arguments.ranks_per_group,
        cores_per_rank=arguments.cores_per_rank,
        time=arguments.time,
        seeds=arguments.seeds,
        account=arguments.account,
        partition=arguments.partition,
        environment=_environment(arguments.environment),
        mpi=arguments.mpi,
        memory_per_node=arguments.memory_per_node,
        links=arguments.links if submitting else None,
        data=os.environ.get("ESGD_DATA", ""),
    )
    if submitting and job.template == "interactive":
        raise InputError(
            "--template interactive is no batch job: `esgd jobs render ... --file try.sh`, then"
            " bash try.sh"
        )
    script = render(job, folder)
    told = notes(job)
    if job.environment and not Path(job.environment).is_file():
        told.append(f"--environment {job.environment}: there is no such file here")
    _tell(job, told)
    if submitting:
        _submit(job, script)
    elif arguments.file is None:
        print(script, end="")
    else:
        _write(Path(arguments.file), script, "--file")


def _site(name: str, folder: Path, names: list[str], scheduler: str) -> Path:
    """Return the file of a site's name, or the one that is named."""
    if name in names:
        file = folder / "sites" / f"{name}.sh"
    elif "/" in name or name.endswith(".sh"):
        file = Path(name)
        if not file.is_file():
            raise InputError(f"--site {name}: no such file")
    else:
        raise InputError(f"--site {name}: one of {', '.join(names)}, or a file such as ./mine.sh")
    head = file.read_text("utf-8", errors="replace").partition("\n\n")[0]
    schedulers = re.search(r"\(((?:slurm|lsf)(?:, (?:slurm|lsf))?)\):", head)
    if schedulers and scheduler not in schedulers[1].split(", "):
        raise InputError(f"--site {name}: it has {schedulers[1]}, not --scheduler {scheduler}")
    return file


def _environment(given: str | None) -> str:
    """Return the file that activates the environment; by default that of this very program."""
    if given is not None:
        return given
    if sys.prefix == sys.base_prefix:
        return ""
    prefix = Path(sys.prefix)
    made_by_cmake = prefix.parent / "env.sh"
    return str(made_by_cmake if made_by_cmake.is_file() else prefix / "bin" / "activate")


def _tell(job: "Job", notes: list[str]) -> None:
    """Say in a few lines what will run; on standard error, for the script may go to a file."""
    from esgd_hpc.jobs.render import asked_to_stop
    from esgd_hpc.jobs.request import num_seeds

    each, mu = job.recipe.topology.ranks_per_group, job.recipe.num_parents
    array = f"{num_seeds(job.seeds)} jobs, in each of them " if job.seeds else ""
    gpu = "a GPU and " if job.gpus_per_node else "no GPU, "
    lines = [
        f"{job.template} for {job.scheduler}, site {job.site.stem}: {array}"
        f"{_count(job.nodes, 'node')} x {_count(job.ranks_per_node, 'rank')} ="
        f" {_count(job.ranks, 'rank')}, each with {gpu}{_count(job.cores_per_rank, 'core')}",
        f"{_count(job.groups, 'group')} of {_count(each, 'rank')}: mu = {mu} individuals, at most"
        f" {-(-mu // job.groups)} a group, {_count(job.recipe.generations, 'generation')}",
    ]
    minutes = f"at most {_count(job.seconds // 60, 'minute')}"
    if job.template == "interactive":
        lines.append(f"{minutes}, in this terminal, after `esgd check`")
    else:
        again = "the next job goes on" if job.template == "chain" else "starts again by itself"
        lines.append(
            f"{minutes}; asked to stop {asked_to_stop(job)} seconds before that, then {again},"
            " until the run is done"
        )
    lines.append(f"files: {job.output}{'/seed-N' if job.seeds else ''}")
    if job.memory_per_node:
        from esgd_hpc.jobs.memory import memory_text

        lines.append(memory_text(job))
    else:
        lines.append(
            "memory was not checked, which takes loading the model: --memory-per-node GIB does it;"
            f" `esgd run {job.recipe_name} --dry-run --ranks {job.ranks}` tells more"
        )
    for line in [*lines, *(f"note: {note}" for note in notes)]:
        print(f"esgd: {line}", file=sys.stderr, flush=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _write(file: Path, script: str, flag: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script, "utf-8")
    except OSError as error:
        raise InputError(f"{flag} {file}: cannot be written: {error.strerror}") from None


def _submit(job: "Job", script: str) -> None:
    """Keep the script beside the run and hand it to the scheduler."""
    command = "sbatch" if job.scheduler == "slurm" else "bsub"
    program = shutil.which(command)
    if program is None:
        raise InputError(
            f"{command} is not found here: submit on a login node, or write the script by"
            " `esgd jobs render ... --file job.sh`"
        )
    file = Path(job.output) / "job.sh"
    if file.exists() and file.read_bytes() != script.encode():
        again = f"{command} {'<' * (job.scheduler == 'lsf')} {file}".replace("  ", " ")
        raise InputError(
            f"--output {job.output} has the script of another job, {file}; submit that again by"
            f" `{again}`, name another --output, or remove it"
        )
    _write(file, script, "--output")
    previous = ""
    for _ in range(job.links):
        words = [program]
        if job.scheduler == "lsf" and previous:
            words += ["-w", f"ended({previous})"]
        # sbatch takes the script's name, bsub its text.
        words += [str(file)] if job.scheduler == "slurm" else []
        said = subprocess.run(words, input=script, capture_output=True, text=True, check=False)
        if said.returncode:
            raise RunError(
                f"{command} refused the job (status {said.returncode}):"
                f" {(said.stderr or said.stdout).strip()}; the script is {file}"
            )
        print(said.stdout.strip(), flush=True)
        number = re.search(r"\d+", said.stdout)
        previous = number[0] if number else ""
    print(f"esgd: the script is {file}", file=sys.stderr, flush=True)
