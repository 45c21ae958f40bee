"""Time the parts of a generation one by one; bench/cost_model.py starts it.

    python bench/cost_parts.py root REPORT --sizes GROUPS:CHILDREN,...
    python bench/cost_parts.py work REPORT
    mpiexec -n 2 python bench/cost_parts.py network REPORT
    mpiexec -n RANKS python bench/cost_parts.py waiting REPORT

`root`: what rank 0 does for all, without MPI, by groups and children a parent. `work`: what each
rank does for its own individuals and children. `network`: messages between two ranks. `waiting`:
how many times as long rank 0 computes while all others wait for it. Seconds of `root` and `work`
are processor time, while all other cores compute as well. REPORT is a JSON file.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import msgspec
import numpy as np
from coordination import CHILDREN, PARENTS

import esgd_hpc
from esgd_hpc import rng
from esgd_hpc.config import Recipe
from esgd_hpc.diversity import MOST, PLACES, mean_distances, sketch
from esgd_hpc.evolution import operators
from esgd_hpc.evolution.planner import Planner
from esgd_hpc.history import OPTIMIZERS, History, generation_row, optimizer_of
from esgd_hpc.population import Individual, Population
from esgd_hpc.sgd.optimizers import draw_optimizer
from esgd_hpc.tasks.null import null_layout
from esgd_hpc.underway import Underway

PARAMETERS = 1_000_000
"""Of the vectors that operators are timed with."""
SMALL = 1000
"""Parameters that cost nothing beside the Python around them."""
GENERATIONS = 40
REPEATS = 15
MESSAGES = 2000
LARGE = 10_000_000
"""float32 places of the messages that show the bandwidth."""
COMPUTING, PAUSE = 0.3, 0.2
"""Seconds for which rank 0 computes while others wait, and before it."""
OTHER = """
import numpy
random = numpy.random.default_rng()
while True:
    random.standard_normal(1_000_000, dtype=numpy.float32)
"""

T = TypeVar("T")


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("root", "work", "network", "waiting"))
    parser.add_argument("report", type=Path)
    parser.add_argument("--sizes", default="")
    arguments = parser.parse_args()
    found: Any
    if arguments.what == "root":
        pairs = [map(int, size.split(":")) for size in arguments.sizes.split(",")]
        with all_cores_busy():
            found = [root(groups, children) for groups, children in pairs]
    elif arguments.what == "work":
        with all_cores_busy():
            found = work()
    else:
        found = {"network": network, "waiting": waiting}[arguments.what]()
    if found is not None:
        arguments.report.write_text(json.dumps(found))


@contextmanager
def all_cores_busy() -> Iterator[None]:
    """Let all cores but one draw normal numbers during the block."""
    others = len(os.sched_getaffinity(0)) - 1
    processes = [subprocess.Popen([sys.executable, "-c", OTHER]) for _ in range(others)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Watch:
    """Adds up the processor time of parts, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, action: Callable[[], T]) -> T:
        """Do something, and add what it took to a part."""
        started = time.process_time()
        result = action()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - started
        return result


def null_recipe(
    groups: int, children: int, parameters: int, generations: int, seed: int = 1
) -> Recipe:
    """Return the recipe of the null task with so many groups and children a parent."""
    parents = PARENTS * groups
    return esgd_hpc.load_recipe(
        "null",
        [
            f"population.parents={parents}",
            f"population.offspring={children * parents}",
            f"task_options.parameters={parameters}",
            f"generations={generations}",
            f"seed={seed}",
        ],
    )


def root(groups: int, children: int) -> dict[str, Any]:
    """Return what rank 0 does in one generation for all groups, small ones the median of several.

    `seconds` by part; `heard`, what each rank does with the records that rank 0 sends; `vectors`,
    those that come to a group; `chosen`, children that survive; `bytes` that rank 0 broadcasts,
    scatters and gathers.
    """
    runs = [_root_once(groups, children) for _ in range(5 if groups <= 128 else 1)]
    result = runs[0]
    for part in result["seconds"]:
        result["seconds"][part] = median(run["seconds"][part] for run in runs)
    result["heard"] = median(run["heard"] for run in runs)
    return result


def _root_once(groups: int, children: int) -> dict[str, Any]:
    recipe = null_recipe(groups, children, SMALL, 5)
    mu = recipe.num_parents
    random = np.random.default_rng(0)
    before = [Individual(uid=uid, fitness=0.5 + float(random.random())) for uid in range(mu)]
    trained = [
        msgspec.structs.replace(i, draw=draw_optimizer(recipe, {}, 1, i), seconds=1.0, epochs=1)
        for i in before
    ]
    home = {uid: uid // PARENTS for uid in range(mu)}
    population = Population(
        generation=1, individuals=trained, owner=home, next_uid=mu, weights={}, trained_by=home
    )
    underway = Underway(generation=1, before=before, trained=trained)
    planner = Planner(population, underway, recipe, {}, None, groups, 1, SMALL)
    watch, sent = Watch(), {"broadcast": 0, "scattered": 0, "gathered": 0}

    def dumps(way: str, things: list[Any]) -> list[bytes]:
        texts = [pickle.dumps(thing, protocol=5) for thing in things]
        sent[way] += sum(map(len, texts))
        return texts

    def gathered(records: list[Individual], each: int) -> None:
        parts = [records[at : at + each] for at in range(0, len(records), each)]
        texts = dumps("gathered", parts)
        watch("records", lambda: sorted_records(texts))

    gathered(trained, PARENTS)
    (news,) = watch("records", lambda: dumps("broadcast", [trained]))
    parts = watch("planning children", planner.plan_children)
    watch("pickling plans", lambda: dumps("scattered", parts))
    scored = [
        Individual(
            uid=child.uid,
            fitness=0.4 + float(random.random()),
            origin="offspring",
            born=1,
            parents=child.parents,
            noise_seed=child.noise_seed,
            sigma=child.sigma,
            seconds=1e-3,
        )
        for part in parts
        for stage in part.stages
        for child in stage.children
    ]
    gathered(scored, PARENTS * children)
    underway.scored = sorted(scored, key=lambda record: record.uid)
    selected = watch("selecting and placing", planner.select)
    (verdict,) = watch("pickling plans", lambda: dumps("broadcast", [selected]))
    parts = watch("selecting and placing", planner.parts)
    watch("pickling plans", lambda: dumps("scattered", parts))
    population.individuals, population.owner = selected.individuals, selected.owner

    sketches = {uid: random.random(PLACES) for uid in [*selected.owner][:MOST]}
    by_optimizer = {
        name: [i.uid for i in selected.individuals if optimizer_of(i) == name]
        for name in OPTIMIZERS
    }
    texts = dumps("gathered", [{uid: found} for uid, found in sketches.items()])
    watch("diversity", lambda: [pickle.loads(text) for text in texts])
    diversity = watch("diversity", lambda: mean_distances(sketches, by_optimizer))

    others = Watch()
    others("heard", lambda: (pickle.loads(news), pickle.loads(verdict)))
    row = others(
        "heard",
        lambda: generation_row(population, before, recipe, {}, diversity, underway.traffic),
    )
    history = History(rows=[row])
    chosen = {i.uid for i in selected.individuals}
    watch(
        "history",
        lambda: history.remember(before, trained, underway.scored, chosen, population),
    )
    return {
        "groups": groups,
        "children": children,
        "seconds": watch.seconds,
        "heard": others.seconds["heard"],
        "vectors": underway.traffic["moved"] / (4 * SMALL * groups),
        "chosen": sum(i.origin == "offspring" for i in selected.individuals),
        "bytes": sent,
    }


def sorted_records(texts: list[bytes]) -> list[Individual]:
    """Return the records that groups have sent, in uid order."""
    return sorted((r for text in texts for r in pickle.loads(text)), key=lambda r: r.uid)


def work() -> dict[str, float]:
    """Return what a rank's own work takes, in seconds per parameter or per generation.

    noise, recombination: of a child. copy: of a vector. sketch: of an individual. python: of a
    generation of one group, whatever the parameters, without what rank 0 decides.
    """
    layout = null_layout(PARAMETERS)
    vectors = [rng.generator(n).standard_normal(PARAMETERS, dtype=np.float32) for n in range(2)]
    out = np.empty_like(vectors[0])
    timed: dict[str, Callable[[], object]] = {
        "noise": lambda: operators.mutate(out, 1, 0.1, layout),
        "recombination": lambda: operators.recombine(vectors, (0, 1), layout, out),
        "copy": vectors[0].copy,
        "sketch": lambda: sketch(vectors[0], layout),
    }
    found = {name: processor_seconds(action) / PARAMETERS for name, action in timed.items()}
    found["python"] = one_group()
    return found


def processor_seconds(action: Callable[[], object]) -> float:
    """Return the processor time of an action, the median of several."""
    watch = Watch()
    seconds = []
    for number in range(REPEATS):
        watch(str(number), action)
        seconds.append(watch.seconds[str(number)])
    return median(seconds)


def one_group() -> float:
    """Return the seconds of a generation of one group of one rank, without planning, the median."""
    from mpi4py import MPI

    rows = esgd_hpc.run(null_recipe(1, CHILDREN, SMALL, GENERATIONS), MPI.COMM_SELF).history
    apart = ("planning", "diversity")  # rank 0's
    return median(
        sum(seconds for phase, seconds in row.seconds.items() if phase not in apart)
        for row in rows[2:]
    )


def network() -> dict[str, float] | None:
    """Return the latency in seconds and the bandwidth in bytes/s of two ranks, on rank 0.

    Half of a ping-pong, of one float32 and of `LARGE`.
    """
    from mpi4py import MPI

    comm = MPI.COMM_WORLD

    def seconds(places: int, count: int) -> float:
        vector = np.zeros(places, dtype=np.float32)
        found = []
        for _ in range(5):
            comm.Barrier()
            started = time.perf_counter()
            for _ in range(count):
                if comm.rank == 0:
                    comm.Send(vector, 1)
                    comm.Recv(vector, 1)
                else:
                    comm.Recv(vector, 0)
                    comm.Send(vector, 0)
            found.append((time.perf_counter() - started) / (2 * count))
        return median(found)

    latency, large = seconds(1, MESSAGES), seconds(LARGE, 3)
    if comm.rank:
        return None
    return {"latency": latency, "bandwidth": 4 * LARGE / (large - latency)}


def waiting() -> float | None:
    """Return how many times as long rank 0 computes while the others wait, on rank 0, the median.

    They wait as in a run, in a broadcast.
    """
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    found = []
    for _ in range(5):
        comm.barrier()
        if comm.rank == 0:
            time.sleep(PAUSE)  # until all wait
            started, end = time.perf_counter(), time.process_time() + COMPUTING
            while time.process_time() < end:
                pass
            found.append((time.perf_counter() - started) / COMPUTING)
        comm.bcast(None)
    return None if comm.rank else max(1.0, median(found))


if __name__ == "__main__":
    main()
