"""A rank that stops or never ends is named, and the job ends by itself; slow groups may be slow."""

import importlib.util
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("horovod"), reason="Horovod is not installed"),
]

SECONDS = 6.0
GROUPS_OF_TWO = (
    "--set", "topology.ranks_per_group=2", "--set", 'topology.gradient_averaging="horovod"',
)  # fmt: skip

TROUBLE = """
import os, time
from pathlib import Path
import torch
from esgd_hpc import ClassificationTask

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
STEPS = 10

class Troubled(ClassificationTask):
    def __init__(self):
        x = torch.randn(4 * STEPS, 3, generator=torch.Generator().manual_seed(1))
        y = torch.arange(4 * STEPS) % 2
        super().__init__(training=(x, y), validation=(x, y))
        self.steps = 0

    def model(self):
        return torch.nn.Linear(3, 2)

    def loss(self, model, batch):
        self.steps += 1
        if os.environ["TROUBLE"] == "stopped":
            if self.steps == STEPS + 1:
                Path(f"rank_{RANK}.{os.getpid()}").touch()
            time.sleep(0.02)
        elif RANK == 1 and self.steps > STEPS:
            self.never_ends()
        elif RANK >= 2:
            time.sleep(float(os.environ["SLOW"]) / STEPS)
        return super().loss(model, batch)

    def never_ends(self):
        print("the first generation is over", flush=True)
        while True:
            pass
"""


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a task with a trouble, and its recipe with a watchdog; return the recipe's path."""
    (tmp_path / "trouble.py").write_text(TROUBLE)
    # What the first optimizer of a process imports may take longer than this watchdog's time.
    (tmp_path / "sitecustomize.py").write_text("import torch._dynamo\nimport horovod.torch\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    recipe = tmp_path / "trouble.toml"
    recipe.write_text(
        'task = "trouble:Troubled"\ngenerations = 100000\n'
        f"[run]\nwatchdog = {SECONDS / 60}\n"
        "[population]\nparents = 2\noffspring = 2\n[sgd]\nbatch_size = 4\n"
        '[[sgd.optimizers]]\nname = "sgd"\nlearning_rate = 0.1\n'
    )
    return recipe


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("ranks", "stopped", "sets"), [(4, 3, GROUPS_OF_TWO), (2, 0, ())], ids=["rank 3", "rank 0"]
)
def test_a_stopped_rank_is_named_and_the_job_ends(
    launch: "Launch", trouble: Path, ranks: int, stopped: int, sets: tuple[str, ...]
) -> None:
    process = launch.start(
        ranks, "run", str(trouble), *sets, cwd=trouble.parent, env={"TROUBLE": "stopped"}
    )
    deadline = time.monotonic() + 120
    while len(found := sorted(trouble.parent.glob("rank_*"))) < ranks:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pids = [int(file.suffix[1:]) for file in found]
    os.kill(pids[stopped], signal.SIGSTOP)
    started = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert SECONDS - 2 < time.monotonic() - started < SECONDS + 20, stderr
    assert stderr.count("esgd: watchdog: no progress for 6 s (run.watchdog = 0.1 minutes)") == 1
    group = stopped // 2 if sets else stopped
    blamed = stderr[stderr.index("Most likely at fault:") :].splitlines()[1:]
    assert blamed[0] == (
        f"  rank {stopped}, host {socket.gethostname()}, process {pids[stopped]}, group {group}:"
        f" silent: its process was stopped (state T in /proc/{pids[stopped]}/stat)"
    )
    assert re.match(
        r"    last progress \d+\.\d s ago, last heartbeat \d+\.\d s ago, at: \w+", blamed[1]
    )
    assert re.match(r'      File ".+", line \d+, in \w+', blamed[3])
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() - started < SECONDS + 25, left
        time.sleep(0.05)


def test_a_group_may_be_slow_and_a_rank_that_never_ends_is_named_with_its_function(
    launch: "Launch", trouble: Path
) -> None:
    # Group 0 waits for group 1 in the first generation, for longer than the watchdog's time.
    done = launch(
        4, "run", str(trouble), *GROUPS_OF_TWO,
        cwd=trouble.parent, env={"TROUBLE": "endless", "SLOW": str(SECONDS + 3)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "the first generation is over" in done.stdout, done.stderr
    blamed = done.stderr[done.stderr.index("Most likely at fault:") :].splitlines()[1:]
    assert re.match(r"  rank 1, host \S+, process \d+, group 0: standing still", blamed[0])
    assert "training individual" in blamed[1]
    assert re.match(r'      File ".+/trouble\.py", line \d+, in never_ends', blamed[3])
    # All threads of the rank, by faulthandler, and those that wait for it are named after it.
    assert re.search(r"rank 1, .+: all its threads", done.stderr)
    assert re.search(r'File ".+/trouble\.py", line \d+ in never_ends', done.stderr)
    assert any(re.match(r"  rank 0, .+, group 0: in a collective", line) for line in blamed)
