"""What becomes of a run that is killed again and again: for test_kills.py and bench/kills.py.

A small two-group run is killed at moments that are drawn from a seed, restarted each time with some
number of groups, and compared at its end with a run that nobody disturbed. Its model is large and
its data are few, so that writing checkpoints takes about as long as training. A kill is aimed: it
waits for what it aims at (a line of output, a name in the folder) and then for a random moment.
"""

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.reader import open_checkpoint, population_digest
from esgd_hpc.checkpoint.verify import newest_valid

if TYPE_CHECKING:
    from conftest import Launch

GENERATIONS = 25
KEEP = 2
RANKS = (2, 2, 2, 1, 1, 3, 4)
"""Groups to restart with, all equally likely."""
SECONDS_TO_END = 60
"""Within which a launcher that lost a rank must have ended the others, and itself."""
SECONDS_TO_REACH = 180

TASK = """
import torch
from esgd_hpc import ClassificationTask

class Clusters(ClassificationTask):
    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        classes = torch.arange(96) % 10
        centers = torch.randn(10, 64, generator=generator)
        inputs = centers[classes] + 2 * torch.randn(96, 64, generator=generator)
        super().__init__(
            training=(inputs[:64], classes[:64]), validation=(inputs[64:], classes[64:])
        )

    def model(self):
        return torch.nn.Sequential(
            torch.nn.Linear(64, 4000), torch.nn.ReLU(), torch.nn.Linear(4000, 10)
        )
"""

RECIPE = f"""
task = "clusters:Clusters"
generations = {GENERATIONS}

[population]
parents = 8
offspring = 9
initialization = "perturb"

[sgd]
epochs = 2
batch_size = 16
[[sgd.optimizers]]
name = "sgd"
learning_rate = [0.001, 0.01]
momentum = [0.1, 0.9]
[[sgd.optimizers]]
name = "adam"
learning_rate = [1e-5, 1e-4]

[checkpoint]
keep = {KEEP}
"""


class Kill(NamedTuple):
    """One kill and what it left."""

    run: int
    """Which of the runs, each of which is restarted until it is done."""
    aim: str
    ranks: int
    victim: str
    """"all", or "one rank"."""
    phase: str
    """What training did, by the clock: start-up, sgd or evolution."""
    state: str
    """What the folder looked like afterwards."""
    newest: int
    """The newest valid generation, -1 for none."""
    seconds: float
    """From the kill until the launcher had ended."""


# Aims ---------------------------------------------------------------------------------------------


class Aim(NamedTuple):
    """What a kill waits for, and for how many seconds more at most."""

    is_reached: "Callable[[Run], bool]"
    seconds: float
    share: int
    """Of the 30 aims that come in a random order, and then again in another."""


ANY_TIME = "start-up"
"""The aim that does not wait for the first generations."""
AIMS = {
    ANY_TIME: Aim(lambda run: True, 3.0, 4),
    "training": Aim(lambda run: True, 0.5, 7),
    "a working folder": Aim(lambda run: bool(run.ahead()), 0.01, 3),
    "weights": Aim(lambda run: run.ahead_has("leader_"), 0.05, 5),
    "commit": Aim(lambda run: run.ahead_has(files.COMMIT), 0.002, 4),
    "publishing": Aim(lambda run: run.newest() > run.newest_before, 0.01, 4),
    "deleting": Aim(lambda run: bool(run.behind()), 0.002, 3),
}


class Run:
    """One start of the run, watched from outside."""

    def __init__(self, launch: "Launch", ranks: int, home: Path, folder: Path) -> None:
        self._launch, self._folder = launch, folder
        self._lines: list[tuple[float, str]] = []
        self.newest_before: int = self.newest()
        self.found = _tree(folder)
        self.process = launch.start(ranks, "run", "recipe.toml", "--output", folder, cwd=home)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append((time.monotonic(), line))

    # What can be seen.

    def generations_shown(self) -> list[tuple[float, str]]:
        """Return when which lines came that say that a generation is finished."""
        return [(moment, line) for moment, line in self._lines if line.startswith("generation ")]

    def newest(self) -> int:
        """Return the number of the newest published generation, -1 for none."""
        return max((number for number, _ in _numbered(self._folder, "")), default=-1)

    def ahead(self) -> list[Path]:
        """Return the folders of checkpoints that are being written."""
        newest = self.newest()
        return [p for n, p in _numbered(self._folder, files.TEMPORARY_SUFFIX) if n > newest]

    def ahead_has(self, prefix: str) -> bool:
        """Tell whether a file whose name begins so is in a folder that is being written."""
        return any(name.startswith(prefix) for path in self.ahead() for name in _names(path))

    def behind(self) -> list[Path]:
        """Return the folders of checkpoints that are being deleted."""
        newest = self.newest()
        return [p for n, p in _numbered(self._folder, files.TEMPORARY_SUFFIX) if n <= newest]

    def phase(self) -> str:
        """Return what training does now, by the clock."""
        shown = self.generations_shown()
        if not shown:
            return "start-up"
        moment, line = shown[-1]
        found = re.search(r"  sgd (\S+) s", line)
        return "sgd" if found and time.monotonic() - moment < float(found[1]) else "evolution"

    # What can be done.

    def reaches(self, aim: Aim, after: int) -> bool:
        """Wait for so many generations and for an aim; False if the run ends before."""
        deadline = time.monotonic() + SECONDS_TO_REACH
        while len(self.generations_shown()) < after or not aim.is_reached(self):
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"no {aim} within {SECONDS_TO_REACH} seconds"
            time.sleep(0.0005)
        return True

    def kill(self, pids: list[int]) -> float:
        """Kill some processes at once, and return after how many seconds all have ended."""
        started = time.monotonic()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.process.args!r} still runs {SECONDS_TO_END} seconds after a rank was killed"
            ) from None
        finally:
            seconds = time.monotonic() - started
            self.end()
        return seconds

    def end(self) -> str:
        """End what is left of it and return what it said on standard error."""
        self._launch.kill(self.process)
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with self.process.stdout, self.process.stderr:
            return self.process.stderr.read()

    def ranks(self) -> list[int]:
        """Return the processes of the ranks, as far as they have been started."""
        pid = self.process.pid
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [int(child) for child in text.split()]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _tree(folder: Path) -> list[str]:
    """Return the names in a run's folder and in its generations, but for the lock."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return sorted(name for name in names if not name.startswith("lock"))


def _numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    pattern = re.compile(rf"gen_(\d+){re.escape(suffix)}")
    found = [(pattern.fullmatch(name), name) for name in _names(folder)]
    return [(int(match[1]), folder / name) for match, name in found if match]


# Killing ------------------------------------------------------------------------------------------


def prepare(home: Path) -> None:
    """Write the task and the recipe into the folder that runs are started in."""
    (home / "clusters.py").write_text(TASK)
    (home / "recipe.toml").write_text(RECIPE)


def undisturbed(launch: "Launch", home: Path) -> str:
    """Run on two groups to the end, and return the digest."""
    folder = home / "undisturbed"
    done = launch(2, "run", "recipe.toml", "--output", folder, cwd=home, timeout=300)
    assert done.returncode == 0, done.stderr
    return population_digest(open_checkpoint(folder))


def kill_again_and_again(
    launch: "Launch", home: Path, digest: str, kills: int, seed: int
) -> Iterator[Kill]:
    """Yield each of so many kills of runs that are restarted until they are done.

    Raises AssertionError where a checkpoint is lost, something hangs, or a run ends in another
    state than that of the digest.
    """
    rng = random.Random(seed)
    aims = _aims(rng)
    done = number = 0
    while done < kills:
        folder = home / f"run_{number}"
        for kill in _one_run(launch, home, folder, kills - done, aims, rng):
            done += 1
            yield kill._replace(run=number)
        _check_end(launch, folder, digest)
        number += 1


def _aims(rng: random.Random) -> Iterator[str]:
    while True:
        names = [name for name, aim in AIMS.items() for _ in range(aim.share)]
        rng.shuffle(names)
        yield from names


def _one_run(
    launch: "Launch",
    home: Path,
    folder: Path,
    kills: int,
    aims: Iterator[str],
    rng: random.Random,
) -> Iterator[Kill]:
    """Start a run, kill it, and so on, until it is done; the first time on two groups."""
    newest, complete, ranks = -1, 0, 2
    while True:
        run = Run(launch, ranks, home, folder)
        name = next(aims)
        aim, after = AIMS[name], 0 if name == ANY_TIME else rng.randint(1, 3)
        wait, one, victim = rng.random() * aim.seconds, rng.random() < 0.5, rng.random()
        if kills == 0 or not run.reaches(aim, after):
            run.process.wait(SECONDS_TO_REACH)
            stderr = run.end()
            assert run.process.returncode == 0, stderr
            return
        pids = run.ranks()
        time.sleep(wait)
        pids, phase = pids or run.ranks(), run.phase()
        if run.process.poll() is not None:
            stderr = run.end()
            assert run.process.returncode == 0, stderr
            continue
        published = max((found.number for found in files.generations(folder)), default=-1)
        one = one and bool(pids)
        seconds = run.kill([pids[int(victim * len(pids))]] if one else [run.process.pid, *pids])
        kills -= 1
        before, (newest, complete) = (newest, complete), _valid(folder)
        state = describe(folder) if _tree(folder) != run.found else "as it was found"
        kill = Kill(0, name, ranks, "one rank" if one else "all", phase, state, newest, seconds)
        was = max(before[0], published)
        assert newest >= was, f"generation {was} is lost: {kill}"
        assert complete >= min(KEEP, before[1]), f"{complete} complete generations left: {kill}"
        yield kill
        ranks = rng.choice(RANKS)


def _valid(folder: Path) -> tuple[int, int]:
    """Return the newest valid generation, -1 for none, and how many complete ones there are."""
    path, _ = newest_valid(folder)
    complete = sum(files.is_complete(found.path) for found in files.generations(folder))
    return (-1 if path is None else files.read_commit(path).generation), complete


def _check_end(launch: "Launch", folder: Path, digest: str) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.generation == GENERATIONS
    assert population_digest(checkpoint) == digest, f"{folder}: another digest than undisturbed"
    verified = launch(0, "verify", folder)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def describe(folder: Path) -> str:
    """Return in words what a killed run has left in its folder."""
    published = dict(_numbered(folder, ""))
    newest = max(published, default=-1)
    working = _numbered(folder, files.TEMPORARY_SUFFIX)
    for number, path in working:
        if number > newest:
            return f"gen_N.tmp {_describe_working(_names(path))}"
    if working:
        return "an old generation half deleted"
    if not published:
        return "no checkpoint yet"
    if os.path.basename(os.path.realpath(folder / files.LATEST)) != published[newest].name:
        return "published, `latest` not moved"
    if len(published) > KEEP:
        return "published, old ones not deleted"
    return "between two checkpoints"


def _describe_working(names: list[str]) -> str:
    if files.COMMIT in names:
        return "with COMMIT.json"
    if files.POPULATION in names:
        return "with population.h5"
    if any(name.endswith(".sum") for name in names):
        return "with sealed weights"
    return "with weights" if names else "empty"
