"""Time how a group averages gradients: sums by backend and size, and steps that overlap them.

    python bench/averaging.py [--ranks 2] [--slow-network 4]

Starts itself on the ranks, and prints Markdown. The slow network is a loopback of its own that
passes so many Gbit/s, both directions together (`unshare -n` and `tc`, which root has on Linux),
over which Open MPI is told to send by TCP; 0 leaves it out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from measure import on_ranks, spread, table, tell, this_command

from esgd_hpc.learner.gradient import BUCKET, OVERLAP_FROM

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 30_000_000)
CUT, CUTS = 10_000_000, (1_000_000, 2_000_000, 4_000_000, 8_000_000)
TENSORS = 100
WIDTH, BATCH, STEPS, EPOCHS = 1024, 128, 4, 5
LAYERS = {"horovod": (1, 4, 10), "torch": (10,), "mpi": (10,)}
SHORT, LONG = "horovod, cycle of 0.1 ms", "horovod, cycle of 1 ms"
CYCLES = {SHORT: {"HOROVOD_CYCLE_TIME": "0.1"}, LONG: {"HOROVOD_CYCLE_TIME": "1"}}
"""Those that esgd chooses from, by size and device; the second is Horovod's own."""
BY_TCP = {"OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo"}

Found = dict[str, list[float]]
"""What was measured, by name: milliseconds, unless it says otherwise."""


def main() -> None:
    """Measure and print; or do a rank's part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--slow-network", type=float, default=4.0, metavar="GBIT")
    parser.add_argument("--rank-of", nargs="+", metavar="WORK", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        be_a_rank(*arguments.rank_of)
    else:
        measure(arguments.ranks, arguments.slow_network)


# What is printed ----------------------------------------------------------------------------------


def measure(ranks: int, gigabits: float) -> None:
    found = partial(found_on, ranks)
    rows = {name: found("sums", "horovod", environment=e) for name, e in CYCLES.items()}
    rows[f"the same, {TENSORS} tensors, fused"] = found("fused", environment=CYCLES[LONG])
    rows["torch (Gloo)"] = found("sums", "torch")
    rows["mpi"] = found("sums", "mpi")
    idle = {name: found("idle", environment=e)["percent"] for name, e in CYCLES.items()}
    networks = {"this machine": 0.0}
    missing = why_not_slow(gigabits) if gigabits else "left out"
    if not missing:
        networks[f"{gigabits:g} Gbit/s"] = gigabits
    steps = {}
    for network, speed in networks.items():
        for name, environment in CYCLES.items():
            steps[network, name] = found(
                "steps", "horovod", environment=environment, gigabits=speed
            )
        for backend in ("torch", "mpi"):
            steps[network, backend] = found("steps", backend, gigabits=speed)

    print("## Averaging gradients\n")
    print(
        f"{ranks} ranks on this machine; the slowest rank counts. n = {times_of(10**4)} sums of up"
        f" to {10**6:,} numbers, {times_of(10**7)} of more. By `{this_command()}`."
        "\n"
    )
    heads = [f"{size:,}" for size in SIZES]
    print("Milliseconds of a sum of so many float32 numbers in one message:\n")
    print(table(["averaging", *heads], sum_rows(rows, [str(size) for size in SIZES])) + "\n")
    print(f"Of {CUT:,} numbers in one message, and in parts that are all begun, then waited for:\n")
    parts = ["one message", *(f"parts of {cut:,}" for cut in CUTS)]
    names = ["whole", *(f"parts {cut}" for cut in CUTS)]
    whole = {name: times for name, times in rows.items() if "whole" in times}
    print(table(["averaging", *parts], sum_rows(whole, names)) + "\n")
    print("Processor time that a rank takes while nothing is summed, per cent of a core:\n")
    print(table(["averaging", "%"], [[k, spread(v, 1)] for k, v in idle.items()]) + "\n")
    print(
        f"Steps of perceptrons with layers of {WIDTH:,} x {WIDTH:,}, {BATCH} samples a step, SGD"
        f" with momentum: milliseconds of a step, n = {EPOCHS} epochs of {STEPS} steps and a score"
        " of 2 samples, one message and overlapped in turn; ratio of each pair. On this machine"
        f" {ranks} ranks {'leave no core' if cores() <= ranks else 'leave cores'} idle for what"
        f" sums beside them.{f' The slow network: {missing}.' if missing else ''}\n"
    )
    heads = ["network, averaging", "parameters", "one message", "overlapped", "ratio"]
    print(table(heads, step_rows(steps)) + "\n")
    ratios = [f"{name} {median(found):.2f}" for name, found in overlapping(steps).items()]
    print(
        f"`esgd` overlaps from {OVERLAP_FROM:,} parameters on, in buckets of {BUCKET:,}. Median"
        f" ratio of all pairs of such networks: {', '.join(ratios)}. The longer cycle, the default"
        f" for them on CPUs, takes {difference(idle):.1f} % of a core less."
    )


def overlapping(steps: Mapping[tuple[str, str], Found]) -> dict[str, list[float]]:
    """Return the ratios of networks that overlap by default, by network between the ranks."""
    found: dict[str, list[float]] = {}
    for (network, _), measured in steps.items():
        for parameters, _, _, ratios in pairs(measured):
            if parameters >= OVERLAP_FROM:
                found.setdefault(network, []).extend(ratios)
    return found


def difference(idle: Mapping[str, Sequence[float]]) -> float:
    return median(idle[SHORT]) - median(idle[LONG])


def pairs(found: Found) -> Iterator[tuple[int, list[float], list[float], list[float]]]:
    """Yield parameters, milliseconds in one message and overlapped, and their ratios."""
    for name, flat in found.items():
        kind, parameters = name.split()
        if kind == "flat":
            overlapped = found[f"overlapped {parameters}"]
            ratios = [o / f for f, o in zip(flat, overlapped, strict=True)]
            yield int(parameters), flat, overlapped, ratios


def sum_rows(rows: Mapping[str, Found], columns: Sequence[str]) -> list[list[str]]:
    return [[name, *(spread(found[c]) for c in columns)] for name, found in rows.items()]


def step_rows(steps: Mapping[tuple[str, str], Found]) -> list[list[str]]:
    return [
        [", ".join(where), f"{size:,}", spread(flat, 1), spread(overlapped, 1), spread(ratios)]
        for where, found in steps.items()
        for size, flat, overlapped, ratios in pairs(found)
    ]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def found_on(
    ranks: int, *words: str, environment: Mapping[str, str] = {}, gigabits: float = 0.0
) -> Found:
    """Return what ranks find, which do the work over the slow network if it has a speed."""
    tell(" ".join([*words, *environment.values(), f"{gigabits:g} Gbit/s" if gigabits else ""]))
    command = on_ranks(ranks, __file__, "--rank-of", *words)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HOROVOD_")}
    variables = {**kept, "OMP_NUM_THREADS": "1", **environment, **(BY_TCP if gigabits else {})}
    if gigabits:
        command = slowed(gigabits, command)
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{done.stderr[-4000:]}\n{' '.join(command)} failed")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def slowed(gigabits: float, command: Sequence[str]) -> list[str]:
    """Return the command that runs another one with a slow loopback of its own."""
    script = (
        "ip link set lo mtu 9000 up"
        f" && tc qdisc add dev lo root tbf rate {gigabits}gbit burst 256kb latency 200ms"
        ' && exec "$@"'
    )
    return ["unshare", "-n", "sh", "-c", script, "sh", *command]


def why_not_slow(gigabits: float) -> str:
    """Return why a network cannot be slowed here, "" if it can."""
    try:
        done = subprocess.run(slowed(gigabits, ["true"]), capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip()


# What ranks do ------------------------------------------------------------------------------------


def be_a_rank(work: str, *words: str) -> None:
    import torch
    from mpi4py import MPI

    torch.set_num_threads(1)
    tasks: dict[str, Callable[..., Found]] = {
        "sums": sums,
        "fused": fused,
        "idle": idle,
        "steps": steps,
    }
    found = tasks[work](*words)
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(found))


def times_of(size: int) -> int:
    return 30 if size <= 1_000_000 else 7


def once(act: Callable[[], Any]) -> float:
    """Return the milliseconds that the slowest rank takes."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
    started = time.perf_counter()
    act()
    slowest: float = MPI.COMM_WORLD.allreduce(1e3 * (time.perf_counter() - started), op=MPI.MAX)
    return slowest


def timed(times: int, act: Callable[[], Any]) -> list[float]:
    """Return the milliseconds of so many times; those of a first one are not counted."""
    return [once(act) for _ in range(times + 1)][1:]


def sums(backend: str) -> Found:
    import torch
    from mpi4py import MPI

    from esgd_hpc.parallel import averaging

    group = averaging.start(backend, MPI.COMM_WORLD, "cpu")

    def in_parts(parts: Sequence[torch.Tensor]) -> None:
        for wait in [group.start_sum(part) for part in parts]:
            wait()

    found = {}
    for size in SIZES:
        found[f"{size}"] = timed(times_of(size), partial(group.sum, torch.zeros(size)))
    flat = torch.zeros(CUT)
    found["whole"] = timed(times_of(CUT), partial(group.sum, flat))
    for cut in CUTS:
        found[f"parts {cut}"] = timed(times_of(CUT), partial(in_parts, flat.split(cut)))
    group.close()
    return found


def fused() -> Found:
    """Time Horovod as it comes: its fusion puts tensors together that are ready in one cycle."""
    import horovod.torch as hvd
    import torch
    from mpi4py import MPI

    hvd.init(comm=MPI.COMM_WORLD)

    def all_parts(parts: Sequence[torch.Tensor]) -> None:
        handles = [
            hvd.allreduce_async_(part, op=hvd.Sum, name=f"{part.numel()}.{place}")
            for place, part in enumerate(parts)
        ]
        for handle in handles:
            hvd.synchronize(handle)

    found = {}
    for size in SIZES:
        parts = torch.zeros(size).split(size // TENSORS)
        found[f"{size}"] = timed(times_of(size), partial(all_parts, parts))
    return found


def idle() -> Found:
    """Tell what Horovod takes of a core, in per cent, while nothing is summed."""
    import torch
    from mpi4py import MPI

    from esgd_hpc.parallel import averaging

    averaging.start("horovod", MPI.COMM_WORLD, "cpu").sum(torch.zeros(1))
    percent = []
    for _ in range(5):
        MPI.COMM_WORLD.Barrier()
        used, started = time.process_time(), time.perf_counter()
        time.sleep(0.5)
        used, passed = time.process_time() - used, time.perf_counter() - started
        percent.append(100 * used / passed)
    MPI.COMM_WORLD.Barrier()
    return {"percent": percent}


def steps(backend: str) -> Found:
    """Time steps of networks of some sizes, in one message and overlapped in turn."""
    import torch
    from mpi4py import MPI
    from torch import nn

    from esgd_hpc.learner import gradient
    from esgd_hpc.learner.network import NetworkLearner
    from esgd_hpc.parallel import averaging
    from esgd_hpc.population import Draw
    from esgd_hpc.recipe_file import recipe_from
    from esgd_hpc.tasks.base import ClassificationTask

    class Noise(ClassificationTask):
        def __init__(self, layers: int) -> None:
            inputs = torch.randn(BATCH * STEPS, WIDTH, generator=torch.Generator().manual_seed(1))
            targets = torch.arange(len(inputs)) % 10
            super().__init__(training=(inputs, targets), validation=(inputs[:2], targets[:2]))
            self.layers = layers

        def model(self) -> nn.Module:
            layers = [(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(self.layers)]
            return nn.Sequential(*(part for layer in layers for part in layer))

    recipe = recipe_from(
        {"task": "none", "sgd": {"optimizers": [{"name": "sgd", "learning_rate": 0.01}]}}
    )
    draw = Draw(
        optimizer="sgd",
        learning_rate=0.01,
        momentum=0.9,
        nesterov=False,
        weight_decay=0.0,
        batch_size=BATCH,
    )
    group = averaging.start(backend, MPI.COMM_WORLD, "cpu")
    found: Found = {}
    for layers in LAYERS[backend]:
        epochs: dict[str, Callable[[], Any]] = {}
        for kind, overlap_from in (("flat", sys.maxsize), ("overlapped", 0)):
            gradient.OVERLAP_FROM = overlap_from
            learner = NetworkLearner(Noise(layers), recipe, group, torch.device("cpu"))
            learner.load(learner.new_weights(1) if group.rank == 0 else None)
            name = f"{kind} {learner.layout.num_parameters}"
            optimizer = learner.optimizer(draw)
            epochs[name] = partial(learner.train_epoch, optimizer, draw, 1, 1, 1)
            epochs[name]()  # the first one makes the momentum
        for _ in range(EPOCHS):
            for name, epoch in epochs.items():
                found.setdefault(name, []).append(once(epoch) / STEPS)
    group.close()
    return found


if __name__ == "__main__":
    main()
