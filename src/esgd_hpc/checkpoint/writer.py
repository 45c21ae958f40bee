"""How a checkpoint gets to disk beside training: complete and verified, or not at all.

    rank 0    makes gen_N.tmp, together with all ranks
    leaders   in a thread each: write their weights, force them to disk, read them back, and leave
              a seal, leader_N.h5.sum, beside them
    rank 0    in a thread: once all seals are there, writes population.h5 and COMMIT.json, renames
              the folder to gen_N, moves `latest`, deletes what is older than the newest few

A generation that is interrupted goes the same way into a folder of its own, see `files`.

Threads touch files only; all communication is in the methods, which every rank calls. What a thread
meets is told by `settle` or `finish`, as one error on every rank. No vector is copied: a checkpoint
holds those of its generation until they are written, so a leader has at most its own individuals
twice.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from esgd_hpc import pulse
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
from esgd_hpc.population import Population, Weights
from esgd_hpc.underway import Underway

log = logging.getLogger(__name__)

Sums = dict[str, files.FileSum]
T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = (0.01, 1.0)
"""How often rank 0 looks for seals: at first, and once it has waited for long."""


class CheckpointWriter:
    """Writes the checkpoints of one run, at most one at a time. Methods are collective."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        recipe: Recipe,
        topology: Topology,
        provenance: Mapping[str, str],
        begun_at: int | None = None,
        longest_seconds: float = 0.0,
    ) -> None:
        """Take what all checkpoints share; `folder` must be one that all ranks share.

        `begun_at` is the newest generation, verified, of the run that goes on; its slowest
        checkpoint took `longest_seconds`.
        """
        self._folder, self._layout, self._recipe = folder, layout, recipe
        self._topology, self._provenance = topology, provenance
        self._verified = set() if begun_at is None else {begun_at}
        self._longest = longest_seconds
        self._job: _Job | None = None

    def newest(self) -> str:
        """Return in words what this process knows to be on disk. On rank 0, to tell people."""
        if not self._verified:
            return "no checkpoint is complete"
        return f"the newest complete checkpoint is generation {max(self._verified)}"

    def has(self, generation: int) -> bool:
        """Whether this process knows a generation to be on disk. Collective."""
        return self._told_by_root(generation in self._verified)

    def longest_seconds(self) -> float:
        """Return the longest time from the start of a checkpoint to its end. Collective."""
        return self._told_by_root(self._longest)

    def _told_by_root(self, value: T) -> T:
        with pulse.waiting("waiting for rank 0 to tell of checkpoints"):
            told: T = self._topology.world.bcast(value)
        return told

    def start(
        self, population: Population, history: History, underway: Underway | None = None
    ) -> None:
        """Begin to write one generation, and to delete those beyond the newest few.

        Where another generation is `underway`, it is written with what is done of that, into a
        folder of its own, and nothing is deleted. Returns before it is written unless
        `checkpoint.background` is off; the one before must be finished. Raises RunError where the
        disk or the folder refuses; earlier checkpoints are then as they were.
        """
        assert self._job is None
        topology = self._topology
        contents = Contents(
            generation=population.generation,
            individuals=population.individuals,
            owner=population.owner,
            next_uid=population.next_uid,
            layout=self._layout,
            recipe=recipe_data(self._recipe),
            history=history.copy(),
            champion=population.champion,
            underway=underway,
            saving_seconds=self._longest,
            ranks=topology.world.size,
            ranks_per_group=topology.ranks_per_group,
            groups=topology.num_groups,
            provenance=dict(self._provenance),
        )
        name = files.INTERRUPTED if underway else files.generation_name(population.generation)
        final = self._folder / name
        working = final.with_name(final.name + files.TEMPORARY_SUFFIX)
        doing = f"writing checkpoint {final}"
        on_root(topology.world, doing, lambda: _begin(self._folder, working))
        keep = self._recipe.checkpoint.keep
        self._job = _Job(working, final, contents, population, topology, keep, self._verified)
        if not self._recipe.checkpoint.background:
            self.finish()

    def settle(self) -> None:
        """Raise the RunError of a checkpoint that has failed meanwhile; do not wait for others."""
        if self._job is None:
            return
        with pulse.waiting("waiting for all ranks to tell of a checkpoint"):
            states = self._topology.world.allgather(self._job.state())
        if "failed" in states or set(states) == {"done"}:
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint that was started, if any, is published; raise its RunError."""
        job, self._job = self._job, None
        if job is None:
            return
        world, doing = self._topology.world, f"writing checkpoint {job.final}"
        try:
            own = together(world, doing, job.own_sums)
            with pulse.waiting("waiting for all ranks to write a checkpoint"):
                gathered = world.gather(own)
            on_root(world, doing, lambda: job.publish(gathered or []))
        except EsgdError:
            on_root(world, doing, job.abandon)
            raise
        self._longest = max(self._longest, job.seconds)


# One checkpoint -----------------------------------------------------------------------------------


class _Job:
    """One checkpoint on its way, as one rank sees it."""

    def __init__(
        self,
        working: Path,
        final: Path,
        contents: Contents,
        population: Population,
        topology: Topology,
        keep: int,
        verified: set[int],
    ) -> None:
        self.final = final
        self.seconds = 0.0
        """From the start to the end, on rank 0, once it is published."""
        self._began = time.monotonic()
        self._working, self._contents = working, contents
        self._keep, self._verified = keep, verified
        self._sums: Sums = {}
        self._complete = threading.Event()
        self._abandoned = threading.Event()
        self._own: Future[Sums] | None = None
        self._published: Future[None] | None = None
        if topology.is_leader:
            group, weights = topology.group_number, dict(population.weights)
            champion = {}
            if population.champion is not None and population.champion_weights is not None:
                champion = {population.champion.uid: population.champion_weights}
            self._own = _in_thread(lambda: self._write_weights(group, weights, champion))
        if topology.world.rank == 0:
            self._published = _in_thread(self._publish_when_complete)

    # Called by all ranks, in their main threads.

    def state(self) -> str:
        """Return "running", "done" or "failed" for this rank's part."""
        futures = [future for future in (self._own, self._published) if future is not None]
        if any(future.done() and future.exception() for future in futures):
            return "failed"
        return "done" if all(future.done() for future in futures) else "running"

    def own_sums(self) -> Sums:
        """Wait for this rank's file and return its sum; nothing on ranks that lead no group."""
        return self._own.result() if self._own is not None else {}

    def publish(self, gathered: list[Sums]) -> None:
        """Wait until the checkpoint is published, now that all files are written. On rank 0."""
        for sums in gathered:
            self._sums |= sums
        self._complete.set()
        assert self._published is not None
        self._published.result()

    def abandon(self) -> None:
        """Delete what was begun, as far as the disk lets us. On rank 0."""
        self._abandoned.set()
        assert self._published is not None
        self._published.exception()  # waits
        with suppress(OSError):  # the error that led here is the one to tell
            files.remove_generation(self._working)

    # Threads.

    def _write_weights(
        self, group: int, weights: dict[int, Weights], champion: dict[int, Weights]
    ) -> Sums:
        """Write and verify the file of this rank's group, and the champion's on rank 0.

        Empties `weights` and `champion`, also where it fails: nothing holds a vector any longer.
        """
        size, owner = self._contents.layout.size, self._contents.owner
        uids = [i.uid for i in self._contents.individuals if owner[i.uid] == group]
        name = files.leader_name(group)
        rows: dict[int, Weights] = {}
        try:
            rows |= {uid: weights.pop(uid) for uid in uids}
            sums = {name: write_weights_file(self._working / name, rows, size)}
            if champion:
                path = self._working / files.CHAMPION
                sums[files.CHAMPION] = write_weights_file(path, champion, size)
        finally:
            for held in (rows, weights, champion):
                held.clear()
        files.write_whole(self._working / files.seal_name(name), msgspec.json.encode(sums))
        return sums

    def _publish_when_complete(self) -> None:
        try:
            sums = self._all_sums()
            if sums is None:
                return
            _commit(self._working, self._contents, sums)
            _publish(self._working, self.final)
        except OSError as error:
            raise files.cannot_write(self.final, error) from None
        self.seconds = time.monotonic() - self._began
        if self._contents.underway:
            _remove(self.final.with_name(self.final.name + files.REPLACED_SUFFIX))
            return
        self._verified.add(self._contents.generation)
        tidy(self.final, self._contents, self._keep, self._verified)

    def _all_sums(self) -> Sums | None:
        """Wait for the sums of all files, by their seals or by word of the ranks.

        None if the checkpoint is abandoned first.
        """
        names = {files.leader_name(group) for group in range(self._contents.groups)}
        pause, longest = _SECONDS_BETWEEN_LOOKS
        found: Sums = {}
        while not self._complete.wait(pause):
            if self._abandoned.is_set():
                return None
            found |= _seals(self._working, names - found.keys())
            if found.keys() >= names:
                break
            pause = min(1.5 * pause, longest)
        if self._abandoned.is_set():
            return None
        return self._sums if self._complete.is_set() else found


def _in_thread(action: Callable[[], T]) -> "Future[T]":
    """Run an action in a thread that does not outlive the process."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # told where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _seals(working: Path, names: set[str]) -> Sums:
    """Return the sums of those files whose seals are there."""
    present = {entry.name for entry in os.scandir(working)}
    found: Sums = {}
    for name in names:
        if files.seal_name(name) in present:
            text = (working / files.seal_name(name)).read_bytes()
            found |= msgspec.json.decode(text, type=Sums)
    return found


# Steps on rank 0 ----------------------------------------------------------------------------------


def _begin(folder: Path, working: Path) -> None:
    """Make the working folder, after the leftovers of killed jobs are gone."""
    if not folder.exists():
        log.warning("%s is not there any more; it is made again, without its lock", folder)
    _make(folder)
    latest = folder / files.LATEST
    if latest.exists() and not latest.is_symlink():
        raise RunError(f"{latest}: not a link of ours, which it would become; rename it")
    for leftover in files.temporary_generations(folder):
        _remove(leftover)
    if working.is_symlink():
        raise RunError(f"{working}: a link, not a folder of ours; remove it")
    _make(working)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from None


def _commit(working: Path, contents: Contents, sums: Sums) -> None:
    """Write population.h5, then COMMIT.json, and force all names to disk."""
    population_path = working / files.POPULATION
    write_population_file(population_path, contents)
    sums = {**sums, files.POPULATION: files.file_sum(population_path)}
    for name in sums:
        with suppress(OSError):  # NFS asks its server anew about a file that is opened
            (working / name).open("rb").close()
    problems = files.size_problems(working, sums)
    if problems:
        raise RunError(
            f"{working}: rank 0 does not find what the leaders wrote ({problems[0]});"
            " the output folder must be on a file system that all nodes share"
        )
    for name in sums:
        with suppress(FileNotFoundError):
            (working / files.seal_name(name)).unlink()
    commit = files.Commit(files.FORMAT_VERSION, contents.generation, sums)
    files.write_file(working / files.COMMIT, files.commit_text(commit))
    files.fsync_folder(working)


def _publish(working: Path, final: Path) -> None:
    """Give the folder its name. The same generation of before moves out of the way."""
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


def tidy(final: Path, contents: Contents, keep: int, verified: Container[int]) -> None:
    """Let `latest` and history.h5 follow a checkpoint, and delete those beyond the `keep` newest.

    The checkpoint stands whatever happens here: what the disk refuses is a warning. On rank 0.
    """
    folder = final.parent
    try:
        files.point_latest(folder, final.name)
        recipe = json.dumps(contents.recipe)
        write_history_file(folder / files.HISTORY, contents.history, recipe, contents.provenance)
    except (EsgdError, OSError) as error:
        log.warning("the checkpoint is complete, but: %s", error)
    for path in (final.with_name(final.name + files.REPLACED_SUFFIX), *files.interrupted(folder)):
        _remove(path)
    found = files.generations(folder)
    for path in files.surplus(found, contents.generation, keep, verified):
        _remove(path)


def _remove(path: Path) -> None:
    """Delete a folder of ours that nobody needs; another time if it cannot be deleted now."""
    try:
        files.remove_generation(path)
    except OSError as error:
        log.warning("%s cannot be deleted: %s", path, error.strerror)
