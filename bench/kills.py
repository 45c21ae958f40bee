"""Kill a two-group run at many random moments and restart it each time; prints Markdown.

Ends with an error where a run that was killed and restarted does not end as one that was not, where
a checkpoint is lost, where a launcher that lost a rank does not end, or where `esgd verify` finds
damage. `tests/system/kills.py` says what is run and how moments are drawn.

    python bench/kills.py [--kills 200] [--seed 1]
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import Launch
from system.kills import kill_again_and_again, prepare, undisturbed


def table(title: str, values: Iterable[object]) -> str:
    """Return a Markdown table of how often each value comes, the most frequent first."""
    rows = [f"| {value} | {count} |" for value, count in Counter(values).most_common()]
    return "\n".join([f"| {title} | kills |", "| --- | ---: |", *rows])


def main() -> None:
    """Kill and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    launch = Launch()
    started = time.monotonic()
    kills = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            digest = undisturbed(launch, Path(folder))
            for kill in kill_again_and_again(
                launch, Path(folder), digest, arguments.kills, arguments.seed
            ):
                kills.append(kill)
                print(f"{len(kills)} of {arguments.kills}: {kill}", file=sys.stderr, flush=True)
    finally:
        launch.close()
    seconds = [kill.seconds for kill in kills if kill.victim != "all"]
    print(f"`python bench/kills.py --kills {arguments.kills} --seed {arguments.seed}`,")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    print(f"- {kills[-1].run + 1} run(s), killed and restarted {len(kills)} times in all, in")
    print(f"  {time.monotonic() - started:.0f} s; every one ended with the digest of the run that")
    print(f"  was not killed, {digest[:16]}..., and verifies")
    print("- no kill lost a generation that was valid before it")
    if seconds:
        print(f"- a launcher that lost a rank had ended all others after {max(seconds):.1f} s at")
        print(f"  most, {statistics.median(seconds):.1f} s in the median\n")
    print(table("what the folder looked like afterwards", (kill.state for kill in kills)))
    print()
    print(table("what training did, by the clock", (kill.phase for kill in kills)))
    print()
    print(table("aimed at", (kill.aim for kill in kills)))
    print()
    print(table("killed", (kill.victim for kill in kills)))
    print()
    print(table("groups of one rank", (kill.ranks for kill in kills)))


if __name__ == "__main__":
    main()
