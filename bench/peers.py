"""Which other systems do the epochs of a run: their environment, and how each is started.

    python bench/peers.py

makes build/peers, a virtual environment of theirs; bench/end_to_end.py does so where it has to.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measure import seconds_of, tell

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "bench" / "peers"
REQUIREMENTS = SCRIPTS / "requirements.txt"
ENVIRONMENT = ROOT / "build" / "peers"
PROCESSES = 2
LIMIT_SECONDS = 900
"""What a peer may take; Tune's loop has no end of its own where a trial never reports."""


class Peer(NamedTuple):
    """A system, and the script that does the work with it."""

    name: str
    words: tuple[str, ...]
    """The script in bench/peers and its options."""
    ranks: int = 0
    """How many it is started on; 0 where it starts its processes itself."""


def peers() -> list[Peer]:
    """Return the peers, named with the versions that are installed."""
    pins = [line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    versions = dict(pins)
    return [
        Peer(f"Ray Tune {versions['ray[tune]']}, PBT", ("ray_pbt.py",)),
        Peer(f"Propulate {versions['propulate']}", ("propulate_pbt.py",), PROCESSES),
    ]


def make_environment() -> None:
    """Install what the peers need, unless it is there."""
    made = ENVIRONMENT / REQUIREMENTS.name
    if made.is_file() and made.read_bytes() == REQUIREMENTS.read_bytes():
        return
    tell(f"making {ENVIRONMENT}")
    python = str(ENVIRONMENT / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--requirement", str(REQUIREMENTS)], check=True, stdout=sys.stderr)
    made.write_bytes(REQUIREMENTS.read_bytes())


def seconds_of_peer(peer: Peer, words: Sequence[str], variables: dict[str, str]) -> float:
    """Return the seconds of the whole of a peer's run. Raises RuntimeError where it cannot do it.

    `words` are what its script is told, `variables` what its environment has besides.
    """
    binaries = ENVIRONMENT / "bin"
    start = [str(binaries / "mpiexec"), "-n", str(peer.ranks)] if peer.ranks else []
    script, *options = peer.words
    limit = ["timeout", "--foreground", "--kill-after=30", str(LIMIT_SECONDS)]
    command = [*limit, *start, str(binaries / "python"), str(SCRIPTS / script), *options, *words]
    own = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'bench'}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        return seconds_of(command, environment=own | variables)
    except SystemExit as error:
        tell(str(error))
        said = str(error).strip().splitlines()
        if said[-1].endswith("status 124"):
            raise RuntimeError(f"did not end within {LIMIT_SECONDS} s") from None
        raise RuntimeError(said[-2] if len(said) > 1 else said[-1]) from None


if __name__ == "__main__":
    make_environment()
