"""Time how checkpoints are written, against dd, and what training sees of it.

    python bench/checkpoint.py [--individuals 100] [--parameters 10000000] [--runs 3]
                               [--stall-individuals 6] [--generations 4] [--folder DIR]

First the file of one leader with all individuals, in turn with `dd ... conv=fsync` of the same
bytes, both out of memory. Then `esgd run` on two ranks, of a task whose generation takes ten times
as long as its checkpoint: without checkpoints, with them beside training, with training waiting.
Prints Markdown. No individuals: that part is left out.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from measure import on_ranks, spread, table, tell, this_command
from memory import peaks

from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint
from esgd_hpc.checkpoint.weights_file import write_weights_file

RANKS = 2
WRITE_SHARE = 10
"""Times the seconds of a checkpoint that a generation takes."""
BATCH_SIZE = 16
INPUTS, CLASSES = 64, 10

TASK = f"""
import torch
from esgd_hpc import ClassificationTask

class Task(ClassificationTask):
    def __init__(self, hidden, batches):
        generator = torch.Generator().manual_seed(1)
        count = {BATCH_SIZE} * (batches + 1)
        classes = torch.arange(count) % {CLASSES}
        centers = torch.randn({CLASSES}, {INPUTS}, generator=generator)
        inputs = centers[classes] + 2 * torch.randn(count, {INPUTS}, generator=generator)
        training, validation = slice({BATCH_SIZE}, None), slice({BATCH_SIZE})
        super().__init__(
            training=(inputs[training], classes[training]),
            validation=(inputs[validation], classes[validation]),
        )
        self._hidden = hidden

    def model(self):
        return torch.nn.Sequential(
            torch.nn.Linear({INPUTS}, self._hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(self._hidden, {CLASSES}),
        )
"""

RECIPE = f"""
task = "task:Task"
[sgd]
batch_size = {BATCH_SIZE}
[[sgd.optimizers]]
name = "sgd"
learning_rate = 0.0001
"""

NONE, BESIDE, WAITS = "none", "beside training", "training waits"
KINDS = {
    NONE: ("checkpoint.every=1000",),
    BESIDE: ("checkpoint.background=true",),
    WAITS: ("checkpoint.background=false",),
}


def cpu_seconds() -> float:
    """Return the CPU time of this process and its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# Against dd ---------------------------------------------------------------------------------------


class Writing(NamedTuple):
    """Seconds of each run."""

    ours: list[float]
    cpu: list[float]
    dd: list[float]


def time_writing(folder: Path, individuals: int, parameters: int, runs: int) -> Writing:
    """Write the same bytes by us and by dd in turn, `runs` times, out of memory."""
    found = Writing([], [], [])
    with tempfile.NamedTemporaryFile(dir=memory_folder(folder, individuals, parameters)) as source:
        rows = fill(Path(source.name), individuals, parameters)
        ours, theirs = folder / "leader.h5", folder / "dd"
        for _ in range(runs):
            os.sync()
            started = time.perf_counter()
            command = ["dd", f"if={source.name}", f"of={theirs}", "bs=4M", "conv=fsync"]
            subprocess.run([*command, "status=none"], check=True)
            found.dd.append(time.perf_counter() - started)
            theirs.unlink()
            os.sync()
            started, cpu = time.perf_counter(), cpu_seconds()
            write_weights_file(ours, dict(enumerate(rows)), parameters)
            found.ours.append(time.perf_counter() - started)
            found.cpu.append(cpu_seconds() - cpu)
            ours.unlink()
    return found


def memory_folder(folder: Path, individuals: int, parameters: int) -> Path:
    """Return a folder in memory with room for the rows, or `folder`, where the page cache helps."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 4.1 * individuals * parameters:
        return memory
    return folder


def fill(path: Path, individuals: int, parameters: int) -> npt.NDArray[np.float32]:
    """Return random rows that lie in a file."""
    shape = (individuals, parameters)
    rows = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
    random = np.random.default_rng(1)
    for row in rows:
        random.standard_normal(out=row, dtype=np.float32)
    return rows


# Beside training ----------------------------------------------------------------------------------


class Training(NamedTuple):
    """What a run looked like from the inside, in its generations but the first and the last."""

    generation: list[float]
    """Seconds of each."""
    stall: list[float]
    """Seconds of each in which training waited for the checkpoint."""
    peak: int
    """Largest number of bytes in memory of any rank."""


def train(
    home: Path, individuals: int, hidden: int, batches: int, generations: int, sets: Sequence[str]
) -> Training:
    """Run esgd on two ranks and return what it took."""
    settings = {
        "generations": generations,
        "population.parents": individuals,
        "population.offspring": RANKS,
        "task_options.hidden": hidden,
        "task_options.batches": batches,
    }
    words = [f"{key}={value}" for key, value in settings.items()] + list(sets)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        run = ["-m", "esgd_hpc", "run", "recipe.toml", "--output", folder]
        run += [word for setting in words for word in ("--set", setting)]
        peak = max(peaks(on_ranks(RANKS, *run), home).values())
        rows = open_checkpoint(find_generation(Path(folder))).history.rows[2:-1]
    seconds = [row.seconds for row in rows]
    return Training(
        [sum(phases.values()) for phases in seconds],
        [phases.get("checkpoint", 0.0) for phases in seconds],
        peak,
    )


def batches_for(home: Path, individuals: int, hidden: int) -> int:
    """Return how many batches make a generation ten times as long as writing its checkpoint."""
    few, many = 4, 16
    short, long = (
        train(home, individuals, hidden, batches, 5, KINDS[WAITS]) for batches in (few, many)
    )
    write = statistics.median(short.stall + long.stall)
    of_few, of_many = (statistics.median(run.generation) - write for run in (short, long))
    each = max(of_many - of_few, 1e-3) / (many - few)
    return max(1, round(few + (WRITE_SHARE * write - of_few) / each))


# Report -------------------------------------------------------------------------------------------


def print_writing(found: Writing, individuals: int, parameters: int) -> None:
    """Print the first table."""
    gigabytes = 4e-9 * individuals * parameters
    print(
        f"One file of {individuals} individuals of {parameters:,} parameters, {gigabytes:.3g} GB,"
        f" in turn with `dd` out of the same memory, n = {len(found.ours)}.\n"
    )
    rows = [
        [name, spread(seconds), spread([gigabytes / s for s in seconds])]
        for name, seconds in (
            ("written, forced to disk, read back and compared", found.ours),
            ("`dd bs=4M conv=fsync` of the same bytes", found.dd),
        )
    ]
    ratios = [dd / ours for ours, dd in zip(found.ours, found.dd, strict=True)]
    rows.append(["processor time of the first", spread(found.cpu), ""])
    print(table(["what", "seconds", "GB/s"], rows) + "\n")
    print(f"Speed relative to dd, verification included, of each pair: {spread(ratios)}.\n")


def print_stall(
    found: dict[str, list[Training]], individuals: int, parameters: int, batches: int
) -> None:
    """Print the second table."""
    own = individuals // RANKS * 4 * parameters
    alone, beside, waits = found[NONE], found[BESIDE], found[WAITS]
    usual = statistics.median(s for run in alone for s in run.generation)
    times = usual / statistics.median(s for run in waits for s in run.stall)
    print(
        f"`esgd run` on {RANKS} ranks, {individuals} individuals of {parameters:,} parameters"
        f" ({own / 1e6:.0f} MB on each leader), {batches} batches an epoch; {len(alone)} runs of"
        f" each kind in turn, {len(alone[0].generation)} generations of each: not the first, nor"
        " the last, whose checkpoint is waited for. The stall is the time in which training waits"
        f" for the checkpoint. A generation without one takes {times:.1f} times as long as the"
        " stall where training waits.\n"
    )
    rows = []
    for kind, runs in found.items():
        generation = [s for run in runs for s in run.generation]
        stall = [s for run in runs for s in run.stall]
        share = [100 * a / b for a, b in zip(stall, generation, strict=True)]
        more = 100 * (statistics.median(generation) / usual - 1)
        peak = max(run.peak for run in runs) / 1e6
        cells = [f"{more:.1f} %", spread(stall, 3), spread(share), f"{peak:.0f}"]
        rows.append([kind, spread(generation), *cells])
    heads = ["checkpoints", "seconds of a generation", "longer by", "stall, s", "stall, %"]
    print(table([*heads, "peak, MB"], rows) + "\n")
    more_memory = max(run.peak for run in beside) - max(run.peak for run in waits)
    print(
        f"Writing beside training costs a leader {more_memory / 1e6:.0f} MB; the bound is its own"
        f" individuals once more, {own / 1e6:.0f} MB."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--individuals", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--stall-individuals", type=int, default=6)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary one")
    arguments = parser.parse_args()
    individuals, few, runs = arguments.individuals, arguments.stall_individuals, arguments.runs
    hidden = max(1, round((arguments.parameters - CLASSES) / (INPUTS + 1 + CLASSES)))
    parameters = hidden * (INPUTS + 1 + CLASSES) + CLASSES
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        home = Path(name)
        needed = 8 * parameters * max(individuals, 2 * few)
        if shutil.disk_usage(home).free < needed:
            raise SystemExit(f"{home}: less than {needed / 1e9:.3g} GB free; name another --folder")
        print("## Checkpoints\n")
        print(
            "How fast a leader writes its individuals, and what training sees of it. By"
            f" `{this_command()}`.\n"
        )
        if individuals:
            tell(f"writing {individuals} individuals, {runs} times")
            writing = time_writing(home, individuals, parameters, runs)
            print_writing(writing, individuals, parameters)
        if few:
            (home / "task.py").write_text(TASK)
            (home / "recipe.toml").write_text(RECIPE)
            tell("how many batches make a generation long enough")
            batches = batches_for(home, few, hidden)
            found: dict[str, list[Training]] = {kind: [] for kind in KINDS}
            for run in range(runs):
                for kind, sets in KINDS.items():
                    tell(f"checkpoints: {kind}, run {run + 1} of {runs}")
                    found[kind].append(
                        train(home, few, hidden, batches, arguments.generations, sets)
                    )
            print_stall(found, few, parameters, batches)


if __name__ == "__main__":
    main()
