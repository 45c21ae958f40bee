"""Model what a generation costs besides training: fit it on few ranks, check it on many, go on.

    python bench/cost_model.py [--json FILE] [--check 128] [--ranks 128,1024,10000]
        [--parameters 10000000] [--sgd 60] [--scoring 0.5] [--latency 2e-6] [--bandwidth 25e9]
        [--leaders 4] [--share 10]

Reads what bench/coordination.py has measured, and measures the parts one by one
(bench/cost_parts.py), among them what rank 0 does for 10,000 groups, which takes a minute. Prints
Markdown.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from coordination import CHILDREN, FILE, PARENTS, Job, Measured, numbers
from measure import on_ranks, seconds_of, table, tell, this_command

PARTS = str(Path(__file__).with_name("cost_parts.py"))
BOUND = 25.0
MEETINGS, PAUSE = 2, 0.01
"""How often groups meet in a generation, and how long one sleeps at most between two looks."""
BROADCASTS, AT_ROOT = 10, 6
"""Collectives of a generation that pass through log2 of the ranks; scatters and gathers, in which
rank 0 sends or receives a message for each rank."""
ROOT_SIZES = (1, 16, 128, 1024, 10_000)
FEWER = 1
"""Children a parent, in place of 4: what rank 0 saves by that."""


class Root(msgspec.Struct, frozen=True):
    """What rank 0 does for so many groups, as bench/cost_parts.py reports it."""

    groups: int
    children: int
    seconds: dict[str, float]
    heard: float
    vectors: float
    chosen: int
    bytes: dict[str, int]

    def total(self) -> float:
        """Return the seconds of rank 0 alone."""
        return sum(self.seconds.values())


class Work(msgspec.Struct, frozen=True):
    """What a rank does for its own, in seconds: a parameter, or a generation (python)."""

    noise: float
    recombination: float
    copy: float
    sketch: float
    python: float

    def seconds(self, parameters: int, children: float) -> float:
        """Return the seconds of one group's work for so many children, those made again too."""
        child = self.noise + self.recombination
        individual = 2 * self.copy + self.sketch
        return self.python + parameters * (children * child + PARENTS * individual)


class Network(msgspec.Struct, frozen=True):
    """What a message takes between two ranks: seconds, and bytes/s."""

    latency: float
    bandwidth: float

    def seconds(self, messages: float, size: float) -> float:
        """Return the seconds of so many messages of so many bytes in all."""
        return messages * self.latency + size / self.bandwidth


class Parts(msgspec.Struct, frozen=True):
    """All that was measured by itself."""

    roots: list[Root]
    work: Work
    network: Network
    waiting: dict[int, float]
    """Ranks on this machine to how many times as long rank 0 takes while the others wait."""

    def root(self, groups: int, children: int = CHILDREN) -> Root:
        """Return what was measured for just so many groups."""
        return next(r for r in self.roots if (r.groups, r.children) == (groups, children))


class Terms(msgspec.Struct, frozen=True):
    """A generation of ranks that share cores, in seconds."""

    root: float
    """Rank 0 alone, slowed down by those that wait."""
    work: float
    """What all ranks do, on the cores that there are."""
    messages: float
    """Vectors between groups: they are copied by the cores as well."""
    ranks: int

    def known(self) -> float:
        """Return the sum of what is measured by itself."""
        return self.root + self.work + self.messages

    def seconds(self, turn: float) -> float:
        """Return the seconds of a generation, with `turn` seconds for each rank to be reached."""
        return self.known() + self.ranks * turn


class Cluster(msgspec.Struct, frozen=True):
    """A cluster on which each rank has a core, and what its job does."""

    parameters: int
    sgd: float
    """Seconds of an SGD step."""
    scoring: float
    """Seconds to score one child."""
    network: Network
    """Of one leader."""


def main() -> None:
    """Measure the parts, fit, check, extrapolate, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--check", type=int, default=128, help="ranks that are only predicted")
    parser.add_argument("--ranks", default="128,1024,10000", help="to go on to")
    parser.add_argument("--parameters", type=int, default=10_000_000, help="P")
    parser.add_argument("--sgd", type=float, default=60.0, help="seconds of an SGD step")
    parser.add_argument("--scoring", type=float, default=0.5, help="seconds to score a child")
    parser.add_argument("--latency", type=float, default=2e-6, help="seconds of a message")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes/s of a node")
    parser.add_argument("--leaders", type=int, default=4, help="that share a node's bandwidth")
    parser.add_argument("--share", type=float, default=10.0, help="%% of rank 0 that are too many")
    arguments = parser.parse_args()
    if not arguments.json.is_file():
        parser.error(f"no {arguments.json}: run bench/coordination.py before")
    measured = msgspec.json.decode(arguments.json.read_bytes(), type=Measured)
    several = numbers(arguments.ranks)
    parts = measure(measured, several)
    cluster = Cluster(
        arguments.parameters,
        arguments.sgd,
        arguments.scoring,
        Network(arguments.latency, arguments.bandwidth / arguments.leaders),
    )

    print("## Cost model\n")
    print(
        "Seconds of a generation besides training, from its parts. Rank 0's part is measured"
        f" without MPI, by processor time, for up to {max(r.groups for r in parts.roots):,} groups;"
        " work of a rank and messages each by themselves, all cores at work. Ranks that share cores"
        " slow each other down while they wait: how much, a program shows in which rank 0 computes"
        " and all others wait for a broadcast. One number is fitted, the turns of ranks on a core"
        f" until all are reached: to the medians of `bench/{arguments.json.name}` with fewer than"
        f" {arguments.check} ranks and the smaller P; the others are predicted."
        f" By `{this_command()}`.\n"
    )
    print(table(["measured by itself", "value", "unit"], part_rows(parts)) + "\n")
    waits = parts.waiting.items()
    print(table(["ranks that share the cores", *(str(n) for n, _ in waits)], [waiting_row(parts)]))
    turn, fitted = fit(measured, parts, arguments.check)
    print(f"\nFitted: {1e3 * turn:.1f} ms a rank and generation, for turns on a core.\n")
    print_errors(measured, parts, turn, fitted)
    print(table(["rank 0 alone, s; groups:", *root_heads(parts)], root_rows(parts)) + "\n")
    print_cluster(parts, cluster, several, arguments)


# Parts ------------------------------------------------------------------------------------------


def measure(measured: Measured, several: Sequence[int]) -> Parts:
    """Measure the parts: rank 0's for the groups of the jobs, and those to go on to."""
    groups = sorted({*ROOT_SIZES, *several, *(job.ranks for job in measured.jobs)})
    sizes = [f"{number}:{CHILDREN}" for number in groups] + [f"{several[-1]}:{FEWER}"]
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {}
        for what in ("work", "network", "root"):
            tell(f"{what} ...")
            report = Path(folder) / "report.json"
            options = ["--sizes", ",".join(sizes)] if what == "root" else []
            words = [PARTS, what, str(report), *options]
            seconds_of(on_ranks(2, *words) if what == "network" else [sys.executable, *words])
            found[what] = json.loads(report.read_text())
        for ranks in sorted({job.ranks for job in measured.jobs}):
            tell(f"{ranks} ranks that wait ...")
            report = Path(folder) / "waiting.json"
            seconds_of(on_ranks(ranks, PARTS, "waiting", str(report)))
            found.setdefault("waiting", {})[ranks] = json.loads(report.read_text())
    parts = {"roots": found.pop("root"), **found}
    return msgspec.convert(parts, Parts)


def waiting_row(parts: Parts) -> list[str]:
    """Return the row of how much ranks that wait slow rank 0 down."""
    return ["rank 0 computes so many times as long", *(f"{w:.2f}" for w in parts.waiting.values())]


def part_rows(parts: Parts) -> list[list[str]]:
    """Return the rows of what was measured by itself."""
    work, network = parts.work, parts.network
    record = parts.roots[-1].heard / (PARENTS * parts.roots[-1].groups)
    return [
        ["noise of a child", f"{1e9 * work.noise:.2f}", "ns a parameter"],
        ["recombination of two parents", f"{1e9 * work.recombination:.2f}", "ns a parameter"],
        ["a copy of a vector", f"{1e9 * work.copy:.2f}", "ns a parameter"],
        ["the sketch of an individual", f"{1e9 * work.sketch:.2f}", "ns a parameter"],
        [
            f"Python of a group: {PARENTS} individuals, {PARENTS * CHILDREN} children",
            f"{1e3 * work.python:.2f}",
            "ms a generation",
        ],
        ["each rank hears the records", f"{1e6 * record:.1f}", "us an individual"],
        ["a message between two ranks", f"{1e6 * network.latency:.1f}", "us"],
        ["the same, bandwidth", f"{1e-9 * network.bandwidth:.2f}", "GB/s"],
    ]


def root_heads(parts: Parts) -> list[str]:
    """Return the heads of the table of what rank 0 does."""
    return [
        f"{r.groups:,}" + ("" if r.children == CHILDREN else f", {r.children} child a parent")
        for r in shown_roots(parts)
    ]


def shown_roots(parts: Parts) -> list[Root]:
    """Return those of the sizes that are shown."""
    return [r for r in parts.roots if r.groups in ROOT_SIZES or r.children != CHILDREN]


def root_rows(parts: Parts) -> list[list[str]]:
    """Return the rows of what rank 0 does, by part, and what it sends."""
    some = shown_roots(parts)
    rows = [[part, *(f"{r.seconds[part]:.3f}" for r in some)] for part in some[0].seconds]
    sent = [[f"MB {way}", *(f"{1e-6 * r.bytes[way]:.2f}" for r in some)] for way in some[0].bytes]
    return [*rows, ["**together**", *(f"{r.total():.3f}" for r in some)], *sent]


# Here: ranks share cores --------------------------------------------------------------------------


def terms_of(job: Job, cores: int, parts: Parts) -> Terms:
    """Return the parts of a generation of a job on this machine."""
    root = parts.root(job.ranks)
    chosen = sum(g.chosen for g in job.generations) / len(job.generations)
    moved = sum(job.vectors("moved")) / len(job.generations)
    each = parts.work.seconds(job.parameters, (job.offspring + chosen) / job.ranks) + root.heard
    at_once = min(cores, job.ranks)
    return Terms(
        root=root.total() * parts.waiting[job.ranks],
        work=job.ranks * each / at_once,
        messages=parts.network.seconds(moved, 4 * job.parameters * moved) / at_once,
        ranks=job.ranks,
    )


def fit(measured: Measured, parts: Parts, check: int) -> tuple[float, list[Job]]:
    """Return the seconds of a turn, at least 0, and the jobs that they are fitted to.

    Least squares of relative errors.
    """
    small = min(job.parameters for job in measured.jobs)
    jobs = [j for j in measured.jobs if j.ranks < check and j.parameters == small]
    if not jobs:
        raise SystemExit(f"no jobs with fewer than {check} ranks; the fit needs some")
    seconds = np.array([job.seconds() for job in jobs])
    known = np.array([terms_of(job, measured.cores, parts).known() for job in jobs])
    ranks = np.array([job.ranks for job in jobs]) / seconds
    turn = float(ranks @ (1.0 - known / seconds) / (ranks @ ranks))
    return max(0.0, turn), jobs


def print_errors(measured: Measured, parts: Parts, turn: float, fitted: Sequence[Job]) -> None:
    """Print what the model says of each job, and how far off it is."""
    rows, errors = [], {}
    for job in measured.jobs:
        terms = terms_of(job, measured.cores, parts)
        said, seconds = terms.seconds(turn), job.seconds()
        error = 100 * (said / seconds - 1)
        if job not in fitted:
            errors[f"{job.ranks} ranks, P = {job.parameters:,}"] = error
        rows.append(
            [
                f"{job.ranks}, P = {job.parameters:,}",
                *(
                    f"{t:.3f}"
                    for t in (terms.root, terms.work, terms.messages, said - terms.known())
                ),
                f"{said:.2f}",
                f"{seconds:.2f}",
                f"{error:+.0f}",
                "fitted" if job in fitted else "**predicted**",
            ]
        )
    heads = ["ranks", "rank 0", "work", "vectors", "turns"]
    print(table([*heads, "model, s", "measured, s", "error, %", ""], rows) + "\n")
    told = "; ".join(f"{name} {error:+.0f} %" for name, error in errors.items())
    missed = sum(abs(error) > BOUND for error in errors.values())
    print(
        f"Predicted: {told or 'nothing'}. {len(errors) - missed} of {len(errors)} are within"
        f" {BOUND:g} %.\n"
    )


# A cluster: a core a rank ------------------------------------------------------------------------


def phases(
    root: Root, parts: Parts, cluster: Cluster, ranks_per_group: int = 1
) -> dict[str, float]:
    """Return the seconds of a generation's phases on a cluster, those of rank 0 first."""
    ranks, network = root.groups * ranks_per_group, cluster.network
    hops = math.log2(ranks)
    made = root.children * PARENTS + root.chosen / root.groups
    coming = network.seconds(root.vectors, 4 * cluster.parameters * root.vectors)
    scoring = root.children * PARENTS * cluster.scoring
    work = parts.work.seconds(cluster.parameters, made)
    sent = root.bytes["broadcast"]
    at_root = root.bytes["scattered"] + root.bytes["gathered"]
    return {
        "rank 0 alone": root.total(),
        "rank 0's messages": network.seconds(AT_ROOT * ranks, at_root),
        "broadcasts": network.seconds(BROADCASTS * hops, sent),
        "each rank hears the records": root.heard,
        "making children, copies, sketches": work,
        "waiting for weights": max(0.0, coming - scoring),
        "meeting": MEETINGS * PAUSE,
        "scoring": scoring,
        "SGD step": cluster.sgd,
    }


def rank_0_share(found: Mapping[str, float]) -> float:
    """Return how much of a generation all others wait for rank 0, in %."""
    return 100 * (found["rank 0 alone"] + found["rank 0's messages"]) / sum(found.values())


def print_cluster(parts: Parts, cluster: Cluster, several: Sequence[int], arguments: Any) -> None:
    """Print a generation on clusters, where rank 0 becomes the limit, and what then."""
    found = [phases(parts.root(ranks), parts, cluster) for ranks in several]
    print(
        f"On a cluster where each rank has a core like those here, one rank a group, P ="
        f" {cluster.parameters:,}: an SGD step of {cluster.sgd:g} s, {cluster.scoring:g} s to"
        f" score a child, {1e6 * arguments.latency:g} us a message, {1e-9 * arguments.bandwidth:g}"
        f" GB/s a node, which {arguments.leaders} leaders share. Weights come while children are"
        " scored; what comes later is waited for. A meeting is late by up to the pause between two"
        " looks.\n"
    )
    rows = [[phase, *(f"{f[phase]:.3f}" for f in found)] for phase in found[0]]
    rows.append(["**a generation**", *(f"{sum(f.values()):.1f}" for f in found)])
    rows.append(["rank 0's share, %", *(f"{rank_0_share(f):.2f}" for f in found)])
    print(table(["seconds; ranks:", *(f"{ranks:,}" for ranks in several)], rows) + "\n")
    for share in (arguments.share, 50.0):
        limit = groups_at(share, parts, cluster)
        where = f"at {limit:,.0f} groups" if limit else "at none of the sizes measured"
        print(f"- Rank 0 has {share:g} % of a generation {where}.")
    print(f"\nWhat then, on {several[-1]:,} ranks:\n")
    rows = [
        [
            words,
            f"{root.groups:,}",
            f"{root.total():.1f}",
            f"{sum(then.values()):.0f}",
            f"{rank_0_share(then):.1f}",
        ]
        for words, root, then in remedies(parts, cluster, several)
    ]
    heads = ["", "groups", "rank 0 alone, s", "a generation, s", "rank 0's share, %"]
    print(table(heads, rows))


def remedies(
    parts: Parts, cluster: Cluster, several: Sequence[int]
) -> list[tuple[str, Root, dict[str, float]]]:
    """Return what may be changed on the most ranks, with rank 0's part and the phases then.

    Ranks of a group are taken to share an epoch, and the scoring of a child, without loss.
    """
    most, fewer = several[-1], several[-2:][0]
    each = max(1, most // fewer)
    longer = msgspec.structs.replace(cluster, sgd=4 * cluster.sgd)
    shared = msgspec.structs.replace(
        cluster, sgd=cluster.sgd / each, scoring=cluster.scoring / each
    )
    more = msgspec.structs.replace(shared, sgd=cluster.sgd)
    whole, few, small = parts.root(most), parts.root(most, FEWER), parts.root(fewer)
    return [
        ("as it is", whole, phases(whole, parts, cluster)),
        ("4 times the epochs a generation (`sgd.epochs`)", whole, phases(whole, parts, longer)),
        (
            f"{FEWER} child a parent (`population.offspring`)",
            few,
            phases(few, parts, cluster),
        ),
        (
            f"groups of {each} (`topology.ranks_per_group`), {PARENTS} parents a group as before",
            small,
            phases(small, parts, shared, each),
        ),
        (f"the same, and {each} times the epochs", small, phases(small, parts, more, each)),
    ]


def groups_at(share: float, parts: Parts, cluster: Cluster) -> float | None:
    """Return at how many groups rank 0 has such a share in %, or None: between sizes by powers."""
    roots = sorted(
        (r for r in parts.roots if r.children == CHILDREN and r.groups > 1),
        key=lambda r: r.groups,
    )
    shares = [rank_0_share(phases(root, parts, cluster)) for root in roots]
    for place in range(1, len(roots)):
        low, high = shares[place - 1], shares[place]
        if low <= share <= high:
            part = math.log(share / low) / math.log(high / low)
            first, last = roots[place - 1].groups, roots[place].groups
            return float(first * (last / first) ** part)
    return None


if __name__ == "__main__":
    main()
