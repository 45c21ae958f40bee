"""Time how checkpoints are written, against dd, and what training sees of it; prints Markdown.

    python bench/checkpoint.py [--individuals 100] [--parameters 10000000] [--runs 3]
                               [--stall-individuals 16] [--generations 5] [--folder DIR]

First the file of one leader with all individuals, in turn with `dd ... conv=fsync` of the same
bytes, both out of memory. Then `esgd run` on two ranks, of a task whose generation takes ten times
as long as its checkpoint: without checkpoints, with them beside training, with training waiting.
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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

KINDS = {
    "no checkpoints": ("checkpoint.every=1000",),
    "beside training": ("checkpoint.background=true",),
    "training waits": ("checkpoint.background=false",),
}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and, in brackets, the smallest and the largest value."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


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
    """What a run looked like from the inside, in its generations but the first two and the last."""

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
        process = subprocess.Popen(
            ["mpiexec", "-n", str(RANKS), sys.executable, "-m", "esgd_hpc", "run", "recipe.toml"]
            + [word for setting in words for word in ("--set", setting)]
            + ["--output", folder],
            cwd=home,
            stdout=subprocess.DEVNULL,
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, *map(peak_memory, children(process.pid)), 0)
            time.sleep(0.1)
        if process.returncode != 0:
            raise SystemExit(f"esgd run ended with status {process.returncode}")
        rows = open_checkpoint(find_generation(Path(folder))).history.rows[2:-1]
    seconds = [row.seconds for row in rows]
    return Training(
        [sum(phases.values()) for phases in seconds],
        [phases.get("checkpoint", 0.0) for phases in seconds],
        peak,
    )


def children(pid: int) -> list[int]:
    """Return the processes that another one has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def peak_memory(pid: int) -> int:
    """Return the most bytes that a process ever had in memory, 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def batches_for(home: Path, individuals: int, hidden: int) -> int:
    """Return how many batches make a generation ten times as long as writing its checkpoint."""
    few, many = 4, 16
    short, long = (
        train(home, individuals, hidden, batches, 5, KINDS["training waits"])
        for batches in (few, many)
    )
    write = statistics.median(short.stall + long.stall)
    of_few, of_many = (statistics.median(run.generation) - write for run in (short, long))
    each = max(of_many - of_few, 1e-3) / (many - few)
    return max(1, round(few + (WRITE_SHARE * write - of_few) / each))


# Report -------------------------------------------------------------------------------------------


def report_writing(found: Writing, individuals: int, parameters: int) -> None:
    """Print the first table."""
    gigabytes = 4e-9 * individuals * parameters
    print(f"One file of {individuals} individuals of {parameters:,} parameters,")
    print(f"{gigabytes:.3g} GB; n = {len(found.ours)} in turn, median [smallest, largest].\n")
    print("| what | seconds | GB/s |\n| --- | --- | --- |")
    for name, seconds in (
        ("written, forced to disk, read back and compared", found.ours),
        ("`dd bs=4M conv=fsync` of the same bytes", found.dd),
    ):
        print(f"| {name} | {spread(seconds)} | {spread([gigabytes / s for s in seconds])} |")
    ratios = [dd / ours for ours, dd in zip(found.ours, found.dd, strict=True)]
    print(f"| CPU time of the first | {spread(found.cpu)} | |")
    print(f"\nSpeed relative to dd, verification included, of each pair: {spread(ratios)}")


def report_stall(
    found: dict[str, list[Training]], individuals: int, parameters: int, batches: int
) -> None:
    """Print the second table."""
    own = individuals // RANKS * 4 * parameters
    alone = statistics.median(s for run in found["no checkpoints"] for s in run.generation)
    print(f"\n`esgd run` on {RANKS} ranks, {individuals} individuals of {parameters:,} parameters")
    print(f"({own / 1e6:.0f} MB on each leader), {batches} batches an epoch; all generations but")
    print(
        f"the first two and the last of {len(found['no checkpoints'])} runs of each kind in turn,"
    )
    print("median [smallest, largest]. The stall is the time in which training waits for the")
    write = statistics.median(s for run in found["training waits"] for s in run.stall)
    print(
        f"checkpoint. Without one, a generation takes {alone / write:.1f} times as long as that.\n"
    )
    print("| checkpoints | seconds of a generation | longer by | stall, s | stall, % | peak, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, runs in found.items():
        generation = [s for run in runs for s in run.generation]
        stall = [s for run in runs for s in run.stall]
        share = [100 * a / b for a, b in zip(stall, generation, strict=True)]
        longer = 100 * (statistics.median(generation) / alone - 1)
        peak = max(run.peak for run in runs) / 1e6
        cells = [kind, spread(generation), f"{longer:.1f} %", spread(stall, 3), spread(share)]
        print(f"| {' | '.join(cells)} | {peak:.0f} |")
    beside, waits = (
        max(run.peak for run in found[kind]) for kind in ("beside training", "training waits")
    )
    print(f"\nWriting beside training costs a leader {(beside - waits) / 1e6:.0f} MB; the bound is")
    print(f"its own individuals once more, {own / 1e6:.0f} MB.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--individuals", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--stall-individuals", type=int, default=16)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary one")
    arguments = parser.parse_args()
    individuals, runs = arguments.individuals, arguments.runs
    hidden = max(1, round((arguments.parameters - CLASSES) / (INPUTS + 1 + CLASSES)))
    parameters = hidden * (INPUTS + 1 + CLASSES) + CLASSES
    print("`python bench/checkpoint.py`,", platform.processor() or platform.machine(), end=", ")
    print(f"{os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        home = Path(name)
        needed = 8 * parameters * max(individuals, 2 * arguments.stall_individuals)
        if shutil.disk_usage(home).free < needed:
            raise SystemExit(f"{home}: less than {needed / 1e9:.3g} GB free; name another --folder")
        if individuals:
            report_writing(
                time_writing(home, individuals, parameters, runs), individuals, parameters
            )
        if arguments.stall_individuals:
            (home / "task.py").write_text(TASK)
            (home / "recipe.toml").write_text(RECIPE)
            few = arguments.stall_individuals
            batches = batches_for(home, few, hidden)
            found: dict[str, list[Training]] = {kind: [] for kind in KINDS}
            for _ in range(runs):
                for kind, sets in KINDS.items():
                    found[kind].append(
                        train(home, few, hidden, batches, arguments.generations, sets)
                    )
            report_stall(found, few, parameters, batches)


if __name__ == "__main__":
    main()
