"""Compare ESGD with the paper's baselines on the stand-ins, over several seeds; writes Markdown.

    python bench/evidence.py [--tasks fashion kjv festvox-ru asterisk] [--seeds 1-8] [--jobs 2]
                             [--set KEY=VALUE]... [--output bench/evidence] [--work build/evidence]
    python bench/evidence.py --table          # print the short table of what is there, run nothing

Each of the four methods runs the task's recipe on one rank, with the same number of SGD epochs per
individual. A run that has ended is a row of OUTPUT/runs.csv and is not made again while its recipe
is the same: the command goes on where it was stopped. OUTPUT/README.md has the medians and the
tests of ESGD against each other method. The folders of the runs of the first seed stay in WORK, and
`esgd report` is made of them there.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from scipy import stats

from esgd_hpc.checkpoint.lock import FolderLock
from esgd_hpc.config import FREE_KEYS, Drawn, Recipe, Table
from esgd_hpc.data.prepare import DATA_SETS
from esgd_hpc.data.store import open_store
from esgd_hpc.errors import EsgdError, InputError, RunError, print_error
from esgd_hpc.provenance import provenance
from esgd_hpc.recipe_file import load_recipe

TASKS = ("fashion", "kjv", "festvox-ru", "asterisk")
METHODS = {
    "esgd": "ESGD",
    "sgd-only": "without evolution",
    "population": "population baseline",
    "single": "single baseline",
}
OTHERS = ("sgd-only", "population", "single")
PRIMARY = "validation_loss"
TOP = 15
"""Table 1 of the paper gives the range of so many of the fittest individuals, or of all."""
RUNS, PAGE = "runs.csv", "README.md"
LEVEL = 0.05
ONLY_THE_LAST = 1_000_000
"""Generations from one checkpoint to the next: the last one is always written."""
SECONDS_TO_LOOK = 0.1


class Bench(NamedTuple):
    """One task of the command: its recipe, with what --set changes."""

    task: str
    recipe: Recipe
    overrides: Sequence[str]

    @property
    def hash(self) -> str:
        return recipe_hash(self.recipe)


class Run(NamedTuple):
    """What one row of the results is the result of."""

    task: str
    method: str
    seed: int
    recipe: str
    """Hash of the recipe."""


class Row(NamedTuple):
    """One run that has ended; a line of runs.csv, where the metrics have columns of their own."""

    task: str
    method: str
    seed: int
    recipe: str
    generations: int
    epochs: int
    """SGD epochs of each individual over the whole run, fine-tuning included."""
    parents: int
    offspring: int
    """Children of one evolution step, 0 where there is none."""
    validation_loss: float
    """Of the best individual; all else is of the same individual, whatever it scores on test."""
    top_low: float
    top_high: float
    """Validation loss of the best and the worst of the top 15 (or all) of the population."""
    seconds: float
    """Of the whole process."""
    version: str
    commit: str
    torch: str
    machine: str
    digest: str
    metrics: Mapping[str, float]

    @property
    def run(self) -> Run:
        return Run(self.task, self.method, self.seed, self.recipe)

    def value(self, quantity: str) -> float:
        """Return the validation loss or a metric; NaN where the row has no such metric."""
        if quantity == PRIMARY:
            return self.validation_loss
        return self.metrics.get(quantity, math.nan)


# Recipes ------------------------------------------------------------------------------------------


def open_bench(task: str, overrides: Sequence[str]) -> Bench:
    """Return a task's recipe. Raises InputError for one that says nothing about the claims."""
    recipe = load_recipe(task, overrides)
    if recipe.fitness.data != "validation":
        raise InputError(
            f'recipe {task}: fitness.data = "{recipe.fitness.data}": the best individual is to be'
            " chosen on validation data"
        )
    if recipe.single.learning_rate <= 0.0:
        raise InputError(
            f"recipe {task}: single.learning_rate = {recipe.single.learning_rate}: the single"
            " baseline needs one"
        )
    return Bench(task, recipe, overrides)


def recipe_hash(recipe: Recipe) -> str:
    """Return a hash of all that defines the result but method and seed.

    Keys that have their defaults do not count: a new key changes no hash.
    """
    data = {k: v for k, v in _told(recipe).items() if k not in ("method", "seed", *FREE_KEYS)}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _told(value: Any) -> Any:
    if isinstance(value, Table):
        told = {}
        for field in msgspec.structs.fields(value):
            own = getattr(value, field.name)
            if own != field.default:
                told[field.name] = _told(own)
        return told
    if isinstance(value, Mapping):
        return {key: _told(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_told(own) for own in value]
    return value.plain() if isinstance(value, Drawn) else value


def epochs_per_individual(data: Mapping[str, Any]) -> int:
    """Return the SGD epochs of each individual over the run of a recipe, given as plain data."""
    epochs = data["generations"] * data["sgd"]["epochs"] + data["fine_tuning"]["epochs"]
    return int(epochs)


def check_epochs(rows: Iterable[Row]) -> None:
    """Raise InputError where methods of a task are to be compared at unequal numbers of epochs."""
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(row.task, row)
        if row.epochs != first.epochs:
            raise InputError(
                f"{row.task}: {row.method} of seed {row.seed} trained for {row.epochs} epochs, but"
                f" {first.method} of seed {first.seed} for {first.epochs}; they cannot be compared:"
                " remove the rows of one and start again"
            )


# Results ------------------------------------------------------------------------------------------


def row_from(
    run: Run, described: Mapping[str, Any], seconds: float, made_by: Mapping[str, str]
) -> Row:
    """Return the row of a run that `esgd inspect --json` describes.

    Raises RunError where it is not the run that was asked for, or did not get to its end.
    """
    recipe = described["recipe"]
    found = (recipe["method"], recipe["seed"], described["generation"])
    if found != (run.method, run.seed, described["generations"]):
        raise RunError(
            f"{run.task}: method {found[0]}, seed {found[1]}, generation {found[2]} of"
            f" {described['generations']} is no finished run of {run.method}, seed {run.seed}"
        )
    losses = sorted(individual["fitness"] for individual in described["population"])
    top = losses[:TOP]
    return Row(
        task=run.task,
        method=run.method,
        seed=run.seed,
        recipe=run.recipe,
        generations=recipe["generations"],
        epochs=epochs_per_individual(recipe),
        parents=len(losses),
        offspring=recipe["population"]["offspring"] if run.method == "esgd" else 0,
        validation_loss=described["best"]["fitness"],
        top_low=top[0],
        top_high=top[-1],
        seconds=round(seconds, 1),
        version=made_by["esgd-hpc"],
        commit=made_by["esgd-hpc commit"],
        torch=made_by["torch"],
        machine=made_by["machine"],
        digest=described["digest"],
        metrics=described["best"]["metrics"],
    )


def read_rows(file: Path) -> list[Row]:
    """Return the rows of runs.csv, none where there is no such file."""
    kinds = {name: kind for name, kind in Row.__annotations__.items() if name != "metrics"}
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            rows = []
            for line in csv.DictReader(opened):
                plain = {name: kind(line.pop(name)) for name, kind in kinds.items()}
                metrics = {name: float(text) for name, text in line.items() if text}
                rows.append(Row(**plain, metrics=metrics))
            return rows
    except FileNotFoundError:
        return []
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{file}: is no table of this command ({error!r}); remove it to begin anew"
        ) from None


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write runs.csv; it is complete at any moment."""
    rows = sorted(rows, key=lambda row: (row.task, row.seed, list(METHODS).index(row.method)))
    metrics = sorted({name for row in rows for name in row.metrics})
    plain = [name for name in Row._fields if name != "metrics"]
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with open(new, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow([*plain, *metrics])
        for row in rows:
            values = [getattr(row, name) for name in plain]
            writer.writerow([*values, *(row.metrics.get(name, "") for name in metrics)])
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)


def add_row(file: Path, row: Row) -> None:
    """Put a row into runs.csv, in place of an older one of the same task, method and seed."""
    others = [other for other in read_rows(file) if other.run[:3] != row.run[:3]]
    write_rows(file, [*others, row])


def current(rows: Iterable[Row], hashes: Mapping[str, str]) -> list[Row]:
    """Return the rows of the tasks' present recipes; `hashes` is by task."""
    return [row for row in rows if hashes.get(row.task) == row.recipe]


def runs_left(
    hashes: Mapping[str, str], methods: Sequence[str], seeds: Sequence[int], rows: Iterable[Row]
) -> list[Run]:
    """Return what is to run, seed by seed, so that a bench that is stopped has whole seeds."""
    there = {row.run for row in rows}
    wanted = [
        Run(task, method, seed, hashes[task])
        for seed in seeds
        for task in hashes
        for method in methods
    ]
    return [run for run in wanted if run not in there]


# Running ------------------------------------------------------------------------------------------


def esgd(*words: str) -> list[str]:
    """Return a command line of esgd, of this Python."""
    return [sys.executable, "-m", "esgd_hpc", *words]


def folder_of(run: Run, work: Path) -> Path:
    """Return the folder of a run's files."""
    return work / f"{Path(run.task).stem}-{run.recipe}" / f"{run.method}-{run.seed}"


def prepare_data(bench: Bench) -> None:
    """Prepare the data of a task where they are missing."""
    name = bench.recipe.task
    path = str(bench.recipe.task_options.get("path", ""))
    if name not in DATA_SETS or not open_store(name, path).is_missing:
        return
    output = ["--output", path] if path else []
    if subprocess.run(esgd("data", "prepare", name, *output)).returncode != 0:
        raise RunError(f"{bench.task}: `esgd data prepare {name}` failed, see above")


def carry_out(
    benches: Sequence[Bench], runs: Sequence[Run], jobs: int, work: Path, file: Path
) -> int:
    """Run what is left, `jobs` at a time, a row after each; return how many failed."""
    by_task = {bench.task: bench for bench in benches}
    made_by = {**provenance(), "machine": machine()}
    waiting, failed, done = list(runs), 0, 0
    running: dict[subprocess.Popen[bytes], tuple[Run, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[_start(by_task[run.task], run, work)] = (run, time.perf_counter())
            time.sleep(SECONDS_TO_LOOK)
            for process in [process for process in running if process.poll() is not None]:
                run, started = running.pop(process)
                seconds = time.perf_counter() - started
                done += 1
                what = f"[{done}/{len(runs)}] {run.task} {run.method}, seed {run.seed}"
                try:
                    row = _result(process, run, seconds, made_by, work)
                except RunError as error:
                    failed += 1
                    print(f"{what}: failed: {error}", file=sys.stderr, flush=True)
                    continue
                add_row(file, row)
                print(f"{what}: {row.validation_loss:.4f}, {seconds:.0f} s", flush=True)
    finally:  # asked to stop: what runs is lost
        for process in running:
            process.kill()
            process.wait()
    return failed


def _start(bench: Bench, run: Run, work: Path) -> subprocess.Popen[bytes]:
    folder = folder_of(run, work)
    shutil.rmtree(folder, ignore_errors=True)  # what a stopped bench left
    folder.parent.mkdir(parents=True, exist_ok=True)
    changes = [
        *bench.overrides,
        f'method="{run.method}"',
        f"seed={run.seed}",
        f"checkpoint.every={ONLY_THE_LAST}",
        "checkpoint.background=false",
    ]
    sets = [word for change in changes for word in ("--set", change)]
    command = esgd("run", bench.task, *sets, "--output", str(folder))
    with open(_log_of(folder), "wb") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )


def _result(
    process: subprocess.Popen[bytes],
    run: Run,
    seconds: float,
    made_by: Mapping[str, str],
    work: Path,
) -> Row:
    folder = folder_of(run, work)
    if process.returncode != 0:
        last = _log_of(folder).read_text("utf-8", "replace").splitlines()[-3:]
        text = "; ".join(last)
        raise RunError(f"status {process.returncode}: {text} (all in {_log_of(folder)})")
    inspected = subprocess.run(esgd("inspect", str(folder), "--json"), capture_output=True)
    if inspected.returncode != 0:
        raise RunError(inspected.stderr.decode(errors="replace").strip())
    return row_from(run, json.loads(inspected.stdout), seconds, made_by)


def _log_of(folder: Path) -> Path:
    return folder.with_suffix(".log")


def report(bench: Bench, methods: Sequence[str], seed: int, work: Path) -> None:
    """Let `esgd report` show the runs of one seed, where their folders are there."""
    folders = [folder_of(Run(bench.task, method, seed, bench.hash), work) for method in methods]
    if not all(folder.is_dir() for folder in folders):
        print(f"{bench.task}: no report, the folders of seed {seed} are not in {work}")
        return
    output = folders[0].parent / "report"
    subprocess.run(esgd("report", *map(str, folders), "--output", str(output)), check=False)


def machine() -> str:
    """Return the processor's name and the number of its cores."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name
        )
    return f"{name}, {os.cpu_count()} cores"


# Statistics ---------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """ESGD against another method, paired by seed; the tests ask whether ESGD is lower."""

    task: str
    other: str
    quantity: str
    pairs: int
    difference: float
    """Mean of ESGD minus the other's."""
    wins: int
    """Pairs in which ESGD is lower."""
    wilcoxon: float
    t_test: float
    """p values; NaN where there are too few pairs."""


def compare(rows: Sequence[Row], task: str, other: str, quantity: str) -> Comparison:
    """Test whether ESGD's values are lower than another method's, over the seeds of both."""
    values = {
        method: {
            row.seed: row.value(quantity)
            for row in rows
            if (row.task, row.method) == (task, method) and not math.isnan(row.value(quantity))
        }
        for method in ("esgd", other)
    }
    seeds = sorted(values["esgd"].keys() & values[other].keys())
    ours = np.array([values["esgd"][seed] for seed in seeds])
    theirs = np.array([values[other][seed] for seed in seeds])
    with np.errstate(invalid="ignore"):
        differences = np.where(ours == theirs, 0.0, ours - theirs)  # both may have failed
    return Comparison(
        task=task,
        other=other,
        quantity=quantity,
        pairs=len(seeds),
        difference=float(differences.mean()) if seeds else math.nan,
        wins=int((differences < 0).sum()),
        wilcoxon=_wilcoxon(differences),
        t_test=_t_test(differences),
    )


def _wilcoxon(differences: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    """Return the exact one-sided p of the signed-rank test; differences of 0 are left out."""
    if len(differences) < 2:
        return math.nan
    signed = differences[differences != 0.0]
    if not len(signed):
        return 1.0
    has_ties = len(np.unique(np.abs(signed))) < len(signed)
    # The tables of the exact test know no ties; then all signs are tried, as long as that is quick.
    method = stats.PermutationMethod(n_resamples=2**16, rng=1) if has_ties else "exact"
    return float(stats.wilcoxon(signed, alternative="less", method=method).pvalue)


def _t_test(differences: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    """Return the one-sided p of the paired t-test."""
    if len(differences) < 2:
        return math.nan
    if not np.isfinite(differences).all():
        return math.nan
    if np.ptp(differences) == 0.0:  # no spread: the statistic is infinite, or 0/0
        return 0.0 if differences[0] < 0.0 else 1.0
    return float(stats.ttest_1samp(differences, 0.0, alternative="less").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's method; NaN stays and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def quantities(rows: Sequence[Row], task: str) -> list[str]:
    """Return what is compared of a task: validation loss, test loss, then its other metrics."""
    names = {name for row in rows if row.task == task for name in row.metrics}
    return [PRIMARY, *sorted(names, key=lambda name: (name != "test_loss", name))]


# Pages --------------------------------------------------------------------------------------------


def short_table(rows: Sequence[Row]) -> str:
    """Return the Markdown table for the project's README: medians, and p against each method."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    lines = _markdown_head(["stand-in", "SGD epochs", "median of", *METHODS.values()], left=3)
    for task in tasks:
        epochs = next(row.epochs for row in rows if row.task == task)
        first = [f"`{task}`", str(epochs)]
        for quantity in quantities(rows, task):
            if quantity != PRIMARY and not quantity.startswith("test_"):
                continue
            cells = [_median(rows, task, "esgd", quantity)]
            for other in OTHERS:
                p = compare(rows, task, other, quantity).wilcoxon
                told = "" if math.isnan(p) else f" (p {_p(p)})"
                cells.append(_median(rows, task, other, quantity) + told)
            lines.append(_markdown_row([*first, _words(quantity), *cells]))
            first = ["", ""]
    number = len(tasks) * len(OTHERS)
    return "\n".join(
        [
            *lines,
            "",
            f"Seeds {_seeds(rows)}. p: one-sided Wilcoxon signed-rank test, paired by seed, that",
            f"ESGD is lower; not corrected for the {number} comparisons of validation loss.",
        ]
    )


def page(rows: Sequence[Row], command: str) -> str:
    """Return README.md of the results."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    primary = [compare(rows, task, other, PRIMARY) for task in tasks for other in OTHERS]
    corrected = dict(zip(((c.task, c.other) for c in primary), holm_of(primary), strict=True))
    lines = [
        "# Evidence",
        "",
        "Made by the command below; do not edit. The four methods have the same recipe, seed and",
        "number of SGD epochs for each individual, on one rank each. The best individual has the",
        "lowest validation loss that was ever seen in the run; the other scores are its own. Test",
        "data chose nothing. ESGD alone also scores children on the validation data, which costs",
        f"its share of the seconds below. `{RUNS}` has each run.",
        "",
        f"    {command}",
        "",
        f"- machine: {_distinct(row.machine for row in rows)}",
        f"- esgd-hpc {_distinct(row.version for row in rows)},"
        f" commit {_distinct(row.commit[:12] for row in rows)},"
        f" torch {_distinct(row.torch for row in rows)}",
        f"- seeds {_seeds(rows)}; {len(rows)} runs, {sum(r.seconds for r in rows) / 3600:.2f} hours"
        " of one core",
        "- p values are one-sided and paired by seed (is ESGD lower?): the exact Wilcoxon"
        " signed-rank test",
        "  and the paired t-test. They are not corrected for the number of comparisons, except in"
        " the",
        f"  column Holm, over the {len(primary)} Wilcoxon tests of validation loss on this page",
        "",
        *_findings(primary, corrected),
    ]
    for task in tasks:
        lines += ["", f"## {task}", "", *_task_lines(rows, task, corrected)]
    return "\n".join(lines) + "\n"


def holm_of(comparisons: Sequence[Comparison]) -> list[float]:
    """Return the Wilcoxon p values of some comparisons, corrected for their number."""
    return holm([comparison.wilcoxon for comparison in comparisons])


def _findings(
    comparisons: Sequence[Comparison], corrected: Mapping[tuple[str, str], float]
) -> Iterator[str]:
    """Say of each comparison of validation loss whether the paper's ordering holds."""
    yield "Is the validation loss of ESGD lower?"
    yield ""
    yield from _markdown_head(["stand-in", *(f"than {METHODS[m]}" for m in OTHERS)], left=4)
    for task in dict.fromkeys(c.task for c in comparisons):
        cells = [_verdict(c, corrected[c.task, c.other]) for c in comparisons if c.task == task]
        yield _markdown_row([f"`{task}`", *cells])


def _verdict(c: Comparison, corrected: float) -> str:
    if math.isnan(c.wilcoxon):
        return "too few seeds"
    if c.wilcoxon >= LEVEL:
        return f"not shown (p {_p(c.wilcoxon)}, {c.wins} of {c.pairs} seeds)"
    holds = "yes" if corrected < LEVEL else "yes, but not after correction"
    return f"{holds} (p {_p(c.wilcoxon)}, {c.wins} of {c.pairs} seeds)"


def _task_lines(
    rows: Sequence[Row], task: str, corrected: Mapping[tuple[str, str], float]
) -> Iterator[str]:
    mine = [row for row in rows if row.task == task]
    ours = next((row for row in mine if row.method == "esgd"), mine[0])
    names = quantities(rows, task)
    yield (
        f"{ours.epochs} SGD epochs for each individual, {ours.generations} generations; mu"
        f" {ours.parents}, lambda {ours.offspring}. Median [lowest, highest] over the seeds."
    )
    yield ""
    titles = ["method", *map(_words, names), f"worst of the top {TOP} (or all)", "seconds"]
    yield from _markdown_head(titles, left=1)
    for method, title in METHODS.items():
        own = [row for row in mine if row.method == method]
        if own:
            cells = [_spread([row.value(name) for row in own]) for name in names]
            high = _spread([row.top_high for row in own])
            seconds = f"{statistics.median(row.seconds for row in own):.0f}"
            yield _markdown_row([title, *cells, high, seconds])
    yield ""
    titles = ["ESGD against", "of", "mean difference", "lower", "p Wilcoxon", "Holm", "p t-test"]
    yield from _markdown_head(titles, left=2)
    for other in OTHERS:
        for name in names:
            c = compare(rows, task, other, name)
            if c.pairs:
                fixed = _p(corrected[task, other]) if name == PRIMARY else ""
                wins = f"{c.wins} of {c.pairs}"
                p_values = [_p(c.wilcoxon), fixed, _p(c.t_test)]
                what = [METHODS[other], _words(name), f"{c.difference:+.4g}", wins]
                yield _markdown_row([*what, *p_values])


def _markdown_head(titles: Sequence[str], left: int) -> list[str]:
    rules = ["---" if place < left else "---:" for place in range(len(titles))]
    return [_markdown_row(titles), _markdown_row(rules)]


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _median(rows: Sequence[Row], task: str, method: str, quantity: str) -> str:
    values = [row.value(quantity) for row in rows if (row.task, row.method) == (task, method)]
    return f"{statistics.median(values):.4g}" if values else "-"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"


def _p(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.2g}" if p >= 0.001 else "< 0.001"


def _words(quantity: str) -> str:
    """Return a quantity in words; metrics of test data are named so, all others validate."""
    said = quantity.startswith(("test_", "validation_"))
    return (quantity if said else f"validation_{quantity}").replace("_", " ")


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _seeds(rows: Iterable[Row]) -> str:
    """Return numbers in words as --seeds takes them, such as 1-8."""
    parts: list[list[int]] = []
    for seed in sorted({row.seed for row in rows}):
        if parts and parts[-1][-1] == seed - 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


# The command --------------------------------------------------------------------------------------


def make_evidence(
    benches: Sequence[Bench],
    methods: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    output: Path,
    work: Path,
    command: str,
) -> int:
    """Run what is missing, write both files, and return how many runs failed."""
    hashes = {bench.task: bench.hash for bench in benches}
    file = output / RUNS
    lock = FolderLock(work)
    try:
        lock.acquire()
    except InputError as error:
        raise InputError(str(error).replace("--output", "--work")) from None
    try:
        runs = runs_left(hashes, methods, seeds, read_rows(file))
        for bench in benches:
            if any(run.task == bench.task for run in runs):
                prepare_data(bench)
        failed = carry_out(benches, runs, jobs, work, file)
        rows = chosen_rows(read_rows(file), hashes, seeds)
        if rows:
            (output / PAGE).write_text(page(rows, command), "utf-8")
            print(f"{output / PAGE}")
        for bench in benches:
            report(bench, methods, seeds[0], work)
        for run in runs:
            if run.seed != seeds[0] and run in {row.run for row in rows}:
                shutil.rmtree(folder_of(run, work), ignore_errors=True)
        return failed
    finally:
        lock.release()


def chosen_rows(rows: Iterable[Row], hashes: Mapping[str, str], seeds: Sequence[int]) -> list[Row]:
    """Return the rows that the pages show, in the order of the tasks.

    Raises InputError where their numbers of epochs differ.
    """
    chosen = [row for row in current(rows, hashes) if row.seed in seeds]
    check_epochs(chosen)
    return sorted(chosen, key=lambda row: list(hashes).index(row.task))


def seeds_of(text: str) -> list[int]:
    """Return the numbers of a list such as 1-8 or 1,3,5-7."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"--seeds {text}: expected numbers such as 1-8 or 1,3,5")
        seeds += range(int(first), int(last if dash else first) + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text}: expected numbers, each once, such as 1-8")
    return seeds


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="RECIPE")
    parser.add_argument("--seeds", default="1-8")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=Path("bench/evidence"), metavar="DIR")
    parser.add_argument("--work", type=Path, default=Path("build/evidence"), metavar="DIR")
    parser.add_argument("--table", action="store_true", help="print the short table, run nothing")
    arguments = parser.parse_args()
    # Asked to end: as Ctrl-C, so that the runs do not stay behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if arguments.jobs < 1:
            raise InputError(f"--jobs {arguments.jobs}: at least 1")
        seeds = seeds_of(arguments.seeds)
        benches = [open_bench(task, arguments.overrides) for task in arguments.tasks]
        if arguments.table:
            hashes = {bench.task: bench.hash for bench in benches}
            rows = chosen_rows(read_rows(arguments.output / RUNS), hashes, seeds)
            print(short_table(rows) if rows else f"no runs of these recipes in {arguments.output}")
            return 0
        failed = make_evidence(
            benches,
            list(METHODS),
            seeds,
            arguments.jobs,
            arguments.output,
            arguments.work,
            shlex.join(["python", "bench/evidence.py", *sys.argv[1:]]),
        )
        if failed:
            raise RunError(f"{failed} runs failed; start the same command again to try them again")
        return 0
    except EsgdError as error:
        print_error(error, None)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped; start the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
