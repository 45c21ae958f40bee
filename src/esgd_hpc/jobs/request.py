"""What a job is to be: flags of the command line, checked against the recipe and each other."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from esgd_hpc.config import Recipe, short
from esgd_hpc.errors import InputError
from esgd_hpc.recipe_file import load_recipe

WITH_GROUPS = ("groups", "array", "chain", "interactive")
"""Templates that set topology.ranks_per_group."""
LAUNCHERS = {"lsf": ("jsrun", "mpirun")}


class Job(NamedTuple):
    """A job whose numbers fit."""

    scheduler: str
    template: str
    site: Path
    recipe: Recipe
    recipe_name: str
    settings: tuple[str, ...]
    """KEY=VALUE of the recipe."""
    output: str
    """Folder of the run; of the runs, where there are several seeds."""
    name: str
    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    cores_per_rank: int
    seconds: int
    seeds: str
    account: str
    partition: str
    environment: str
    mpi: str
    memory_per_node: int
    """GiB; 0 where it was not told."""
    links: int
    data: str
    """Folder of prepared data; empty: `data`."""

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def groups(self) -> int:
        """Groups that train individuals at the same time."""
        return self.ranks // self.recipe.topology.ranks_per_group


def asked_for(
    *,
    scheduler: str,
    template: str | None,
    site: Path,
    site_directives: dict[str, str],
    recipe_name: str,
    settings: Sequence[str],
    output: str | None,
    name: str | None,
    nodes: int,
    gpus_per_node: int | None,
    ranks_per_node: int | None,
    ranks_per_group: int | None,
    cores_per_rank: int | None,
    time: str,
    seeds: str | None,
    account: str | None,
    partition: str | None,
    environment: str,
    mpi: str | None,
    memory_per_node: int | None,
    links: int | None,
    data: str,
) -> Job:
    """Return the job of these flags, or raise InputError that names the flag which is wrong."""
    for flag, text in (
        ("RECIPE", recipe_name),
        ("--output", output),
        ("--environment", environment),
        ("ESGD_DATA", data),
        *(("--set", setting) for setting in settings),
    ):
        if text and not text.isprintable():
            raise InputError(
                f"{flag} {text!r}: has a line break or another control character, which a job"
                " script cannot hold"
            )
    if ranks_per_group is not None:
        settings = [*settings, f"topology.ranks_per_group={ranks_per_group}"]
    recipe = load_recipe(recipe_name, settings)
    each = recipe.topology.ranks_per_group
    if ranks_per_group is not None:
        settings = settings[:-1]
    template = template or _fitting_template(nodes, seeds, each if ranks_per_group else 1)
    if ranks_per_group is not None and template not in WITH_GROUPS and each > 1:
        raise InputError(
            f"--ranks-per-group {each}: template {template} has none; use --template groups"
        )
    seconds = _seconds(time)
    if gpus_per_node is None:
        gpus_per_node = _number_of(site_directives, "gpus-per-node", "--gpus-per-node")
    _at_least(1, "--nodes", nodes)
    _at_least(0, "--gpus-per-node", gpus_per_node)
    if ranks_per_node is None:
        ranks_per_node = gpus_per_node
        if not ranks_per_node:
            raise InputError(
                "--gpus-per-node 0: say by --ranks-per-node N how many ranks a node has"
            )
    _at_least(1, "--ranks-per-node", ranks_per_node)
    threads = recipe.topology.threads_per_rank
    if cores_per_rank is None:
        # One more than torch computes on: for Horovod's thread, and those that write checkpoints.
        cores_per_rank = _number_of(
            site_directives, "cpus-per-task", "--cores-per-rank", threads + 1
        )
    _at_least(1, "--cores-per-rank", cores_per_rank)
    if cores_per_rank < threads:
        raise InputError(
            f"--cores-per-rank {cores_per_rank} is less than topology.threads_per_rank = {threads}"
            f" of the recipe; use --cores-per-rank {threads}, or --set topology.threads_per_rank="
            f"{cores_per_rank}, which may change last bits of results"
        )
    if memory_per_node is not None:
        _at_least(1, "--memory-per-node", memory_per_node)
    if links is not None:
        _at_least(1, "--links", links)
        if template != "chain":
            raise InputError(f"--links {links}: for --template chain, not {template}")
    folder = output or f"runs/{Path(recipe_name).stem}"
    job = Job(
        scheduler=scheduler,
        template=template,
        site=site,
        recipe=recipe,
        recipe_name=recipe_name,
        settings=tuple(settings),
        output=folder,
        name=_word("--name", name) if name else _name_of(folder),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        ranks_per_node=ranks_per_node,
        cores_per_rank=cores_per_rank,
        seconds=seconds,
        seeds=_seeds(seeds, template, scheduler, settings),
        account=_word("--account", account) if account else "",
        partition=_word("--partition", partition) if partition else "",
        environment=environment,
        mpi=_word("--mpi", mpi) if mpi else "",
        memory_per_node=memory_per_node or 0,
        links=links or 1,
        data=data,
    )
    _check_ranks(job)
    if mpi and mpi not in LAUNCHERS.get(scheduler, (mpi,)):
        raise InputError(f"--mpi {mpi}: LSF starts ranks by jsrun or mpirun")
    return job


def notes(job: Job) -> list[str]:
    """Return what is allowed but may not be meant."""
    found = []
    each, mu = job.recipe.topology.ranks_per_group, job.recipe.num_parents
    if job.ranks_per_node < job.gpus_per_node:
        idle = job.gpus_per_node - job.ranks_per_node
        found.append(f"{idle} of {job.gpus_per_node} GPUs of each node are not used")
    if job.ranks_per_node % each and each % job.ranks_per_node:
        found.append(
            f"groups of {each} do not fill nodes of {job.ranks_per_node} ranks: some reach over two"
            " nodes, and their gradients travel over the network"
        )
    elif each > job.ranks_per_node:
        found.append(
            f"a group of {each} ranks covers {each // job.ranks_per_node} nodes: its gradients"
            " travel over the network"
        )
    if mu % job.groups:
        found.append(
            f"{mu} individuals (mu) in {job.groups} groups: {job.groups - mu % job.groups} groups"
            " have one less than the others, and wait for them in each generation"
        )
    return found


def _check_ranks(job: Job) -> None:
    each, mu = job.recipe.topology.ranks_per_group, job.recipe.num_parents
    on_gpus = job.gpus_per_node and job.recipe.topology.device != "cpu"
    if on_gpus and job.ranks_per_node > job.gpus_per_node and not job.recipe.topology.share_gpus:
        raise InputError(
            f"--ranks-per-node {job.ranks_per_node} is more than --gpus-per-node"
            f" {job.gpus_per_node}: ranks would share GPUs; use --ranks-per-node"
            f" {job.gpus_per_node}, or allow it by --set topology.share_gpus=true"
        )
    made_of = f"--nodes {job.nodes} x {job.ranks_per_node} ranks a node = {job.ranks} ranks"
    if on_gpus and job.ranks_per_node > job.gpus_per_node and job.scheduler == "lsf":
        raise InputError(
            f"--ranks-per-node {job.ranks_per_node}: the LSF scripts give each rank a GPU of its"
            f" own; use --ranks-per-node {job.gpus_per_node}, or edit the script"
        )
    if job.ranks % each:
        raise InputError(
            f"{made_of} are not a multiple of {each} ranks a group; change --nodes, or"
            " --ranks-per-group (topology.ranks_per_group of the recipe)"
        )
    if job.groups > mu:
        fits = next(
            n for n in range(each, job.ranks + 1) if job.ranks % n == 0 and job.ranks <= n * mu
        )
        raise InputError(
            f"{made_of} are {job.groups} groups of {each}, but there are {mu} individuals to train"
            f" (population.parents): {job.groups - mu} of the groups would idle; use at most"
            f" {mu * each} ranks, or --ranks-per-group {fits}"
        )


def _fitting_template(nodes: int, seeds: str | None, ranks_per_group: int) -> str:
    if seeds:
        return "array"
    if ranks_per_group > 1:
        return "groups"
    return "many-nodes" if nodes > 1 else "single-node"


def _number_of(directives: dict[str, str], key: str, flag: str, default: int | None = None) -> int:
    if key not in directives:
        if default is not None:
            return default
        raise InputError(f"{flag} is missing: how many has a node? 0: none")
    number = directives[key].rpartition(":")[2]  # a100:4
    if not number.isdecimal():
        raise InputError(f"--site: its directive {key} = {directives[key]}: expected a number")
    return int(number)


def _at_least(least: int, flag: str, number: int) -> None:
    if number < least:
        raise InputError(f"{flag} {number}: expected a number of at least {least}")


def _word(flag: str, text: str) -> str:
    """Return a name that schedulers take without quotes."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.,+@:/-]*", text):
        raise InputError(
            f"{flag} {short(text)}: expected letters, digits and _.,+@:/- without spaces"
        )
    return text


def _name_of(folder: str) -> str:
    """Return a name for the job, from the run's folder."""
    return "esgd-" + (re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(folder).name).strip("-") or "run")


def _seconds(time: str) -> int:
    match = re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", time)
    seconds = 0
    if match:
        hours, minutes, rest = map(int, match.groups())
        seconds = 3600 * hours + 60 * minutes + rest
    if seconds < 60:
        raise InputError(
            f"--time {short(time)}: expected HH:MM:SS of at least a minute, such as 04:00:00"
        )
    return seconds


def _seeds(seeds: str | None, template: str, scheduler: str, settings: Sequence[str]) -> str:
    if seeds is None:
        if template == "array":
            raise InputError("--template array needs --seeds, such as --seeds 1-8")
        return ""
    if template != "array":
        raise InputError(f"--seeds {short(seeds)}: for --template array, not {template}")
    if any(setting.partition("=")[0].strip() == "seed" for setting in settings):
        raise InputError("--set seed and --seeds: each job of the array has its own seed; drop one")
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*(%[1-9]\d{0,8})?", seeds):
        raise InputError(
            f"--seeds {short(seeds)}: expected numbers and ranges, such as 1-8 or 1,3,5-7; 1-8%4"
            " runs four at a time"
        )
    for first, last in _ranges(seeds):
        if first > last:
            raise InputError(f"--seeds {seeds}: {first}-{last} goes down")
        if first == 0 and scheduler == "lsf":
            raise InputError(f"--seeds {seeds}: arrays of LSF begin at 1")
    return seeds


def _ranges(seeds: str) -> list[tuple[int, int]]:
    parts = [part.partition("-") for part in seeds.partition("%")[0].split(",")]
    return [(int(first), int(last or first)) for first, _, last in parts]


def num_seeds(seeds: str) -> int:
    """Return how many jobs an array of these seeds has."""
    return sum(last - first + 1 for first, last in _ranges(seeds))
