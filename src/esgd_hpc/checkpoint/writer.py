"""How a checkpoint gets to disk so that it is complete and verified, or does not exist.

    rank 0    makes gen_N.tmp
    leaders   write their weights, force them to disk, read them back
    rank 0    writes population.h5 and COMMIT.json, renames the folder to gen_N, moves `latest`
    rank 0    deletes what is older than the newest few

Ranks agree after each line, so that an error on one ends the function on all.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.history_file import write_history_file
from esgd_hpc.checkpoint.population_file import Contents, write_population_file
from esgd_hpc.checkpoint.weights_file import write_weights_file
from esgd_hpc.config import Recipe, recipe_data
from esgd_hpc.errors import EsgdError, RunError
from esgd_hpc.history import History
from esgd_hpc.layout import Layout
from esgd_hpc.parallel.agreement import on_root, together
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Population

Sums = dict[str, files.FileSum]


def write_checkpoint(
    folder: Path,
    population: Population,
    layout: Layout,
    recipe: Recipe,
    history: History,
    topology: Topology,
    *,
    keep: int,
    provenance: Mapping[str, str],
) -> None:
    """Write one generation into the folder of a run and delete those beyond the `keep` newest.

    Collective over the world, which must share the folder. Raises RunError on every rank where
    the disk or the folder refuses; earlier checkpoints are then as they were.
    """
    world = topology.world
    contents = Contents(
        generation=population.generation,
        individuals=population.individuals,
        owner=population.owner,
        next_uid=population.next_uid,
        layout=layout,
        recipe=recipe_data(recipe),
        history=history.copy(),
        champion=population.champion,
        ranks=world.size,
        ranks_per_group=topology.ranks_per_group,
        groups=topology.num_groups,
        provenance=dict(provenance),
    )
    final = folder / files.generation_name(population.generation)
    working = final.with_name(final.name + files.TEMPORARY_SUFFIX)
    doing = f"writing checkpoint {final}"
    on_root(world, doing, lambda: _begin(folder, working))
    try:
        own = together(
            world,
            doing,
            lambda: _write_weights(working, population, layout, topology),
        )
        gathered = world.gather(own)
        on_root(world, doing, lambda: _commit(working, contents, gathered or []))
        on_root(world, doing, lambda: _publish(working, final))
    except EsgdError:
        on_root(world, doing, lambda: _discard(working))
        raise
    on_root(world, doing, lambda: _write_history(folder, contents))
    on_root(
        world,
        f"deleting old checkpoints in {folder}",
        lambda: _delete_old(folder, final, population.generation, keep),
    )


def _begin(folder: Path, working: Path) -> None:
    """Make the working folder, after the leftovers of killed jobs are gone. On rank 0."""
    _make(folder)
    latest = folder / files.LATEST
    if latest.exists() and not latest.is_symlink():
        raise RunError(f"{latest}: not a link of ours, which it would become; rename it")
    for leftover in files.temporary_generations(folder):
        files.remove_generation(leftover)
    if working.is_symlink():
        raise RunError(f"{working}: a link, not a folder of ours; remove it")
    _make(working)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from None


def _write_weights(
    working: Path, population: Population, layout: Layout, topology: Topology
) -> Sums:
    """Write and verify the file of this rank's group. Nothing on ranks that lead none."""
    if not topology.is_leader:
        return {}
    group = topology.group_number
    weights = {i.uid: population.weights[i.uid] for i in population.owned_by(group)}
    name = files.leader_name(group)
    sums = {name: write_weights_file(working / name, weights, layout.size)}
    if population.champion is not None and population.champion_weights is not None:
        champion = {population.champion.uid: population.champion_weights}
        path = working / files.CHAMPION
        sums[files.CHAMPION] = write_weights_file(path, champion, layout.size)
    return sums


def _commit(working: Path, contents: Contents, gathered: Sequence[Sums]) -> None:
    """Write population.h5, then COMMIT.json, and force all names to disk. On rank 0."""
    sums: Sums = {}
    for own in gathered:
        sums |= own
    population_path = working / files.POPULATION
    write_population_file(population_path, contents)
    sums[files.POPULATION] = files.file_sum(population_path)
    commit = files.Commit(files.FORMAT_VERSION, contents.generation, sums)
    problems = files.size_problems(working, sums)
    if problems:
        raise RunError(
            f"{working}: rank 0 does not find what the leaders wrote ({problems[0]});"
            " the output folder must be on a file system that all nodes share"
        )
    files.write_file(working / files.COMMIT, files.commit_text(commit))
    files.fsync_folder(working)


def _publish(working: Path, final: Path) -> None:
    """Give the folder its name. The same generation of before moves out of the way. On rank 0."""
    replaced = final.with_name(final.name + files.REPLACED_SUFFIX)
    if final.exists():
        if replaced.exists():  # of a job that was killed before it deleted it
            files.remove_generation(replaced)
        final.rename(replaced)
    try:
        working.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    files.fsync_folder(final.parent)
    files.point_latest(final.parent, final.name)


def _write_history(folder: Path, contents: Contents) -> None:
    """Write history.h5 beside the generations. On rank 0."""
    write_history_file(
        folder / files.HISTORY,
        contents.history,
        json.dumps(contents.recipe),
        contents.provenance,
    )


def _discard(working: Path) -> None:
    """Delete what was begun, as far as the disk lets us. On rank 0."""
    try:
        files.remove_generation(working)
    except OSError:
        return  # the error that led here is the one to tell; readers ignore what is left


def _delete_old(folder: Path, final: Path, generation: int, keep: int) -> None:
    """Delete the complete generations beyond the newest few, and what was replaced. On rank 0."""
    replaced = final.with_name(final.name + files.REPLACED_SUFFIX)
    files.remove_generation(replaced)
    for path in files.surplus(files.generations(folder), generation, keep):
        files.remove_generation(path)
