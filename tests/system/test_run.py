"""`esgd run` under mpiexec as users start it: digests, resuming, signals, failing ranks, export."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from os.path import samefile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from esgd_hpc.checkpoint.reader import open_checkpoint
from esgd_hpc.data.prepare import prepare
from esgd_hpc.tasks.digits import digits

if TYPE_CHECKING:
    from conftest import Launch

QUICK = ("--set", "generations=3", "--set", "population.offspring=9")
EXAMPLE = Path(__file__).parents[2] / "examples" / "spirals"
FASHION = Path("/usr/share/datasets/fashion-mnist")


def inspect(launch: "Launch", run: Path) -> dict[str, Any]:
    """Return what `esgd inspect --json` says of a run."""
    shown = launch(0, "inspect", str(run), "--json")
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def test_the_digest_is_the_same_on_one_two_three_and_four_ranks(
    launch: "Launch", tmp_path: Path
) -> None:
    digests = set()
    for ranks in (0, 1, 2, 3, 4):  # 0: without mpiexec; 8 individuals, so 3 groups are uneven
        run = tmp_path / str(ranks)
        done = launch(ranks, "run", "digits", *QUICK, "--output", str(run))
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("generation ")]
        assert len(lines) == 4
        best = [float(re.search(r"best (\S+)", line)[1]) for line in lines]  # type: ignore[index]
        assert best == sorted(best, reverse=True)
        assert best[-1] < best[0]
        found = inspect(launch, run)
        assert found["ranks"] == max(1, ranks)
        assert found["theorem_1_holds"] is True
        digests.add(found["digest"])
    assert len(digests) == 1


def test_inspect_shows_what_job_scripts_rely_on(launch: "Launch", tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = launch(2, "run", "digits", *QUICK, "--output", str(run))
    assert done.returncode == 0, done.stderr
    found = inspect(launch, run)
    assert {"recipe", "generation", "generations", "ranks", "ranks_per_group", "groups"} < set(
        found
    )
    assert found["generation"] == found["generations"] == 3
    assert found["recipe"]["population"]["offspring"] == 9
    assert len(found["population"]) == 8
    best = min(found["population"], key=lambda i: (i["fitness"], i["uid"]))
    assert best["uid"] == found["best"]["uid"]
    assert found["best"]["metrics"]["error_rate"] < 0.5
    assert found["history"]["generation"] == [0, 1, 2, 3]
    assert found["history"]["best"][-1] == found["best"]["fitness"]


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_plain_torch_loads_an_export_back_to_the_recorded_fitness(
    launch: "Launch", tmp_path: Path, ending: str
) -> None:
    run, path = tmp_path / "run", tmp_path / f"best.{ending}"
    assert launch(0, "run", "digits", *QUICK, "--output", str(run)).returncode == 0
    done = launch(0, "export", str(run), "--output", str(path))
    assert done.returncode == 0, done.stderr
    task = digits()
    model = task.model()
    if ending == "pt":
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        model.load_state_dict(load_file(path))
    inputs, targets = task.validation  # type: ignore[misc]
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model.eval()(inputs), targets))
    assert loss == pytest.approx(inspect(launch, run)["best"]["fitness"], rel=1e-6)


def test_a_finished_run_says_so_and_does_nothing(launch: "Launch", tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("run", "digits", *QUICK, "--output", str(run))
    assert launch(2, *command).returncode == 0
    digest = inspect(launch, run)["digest"]
    again = launch(3, *command)
    assert again.returncode == 0
    assert "nothing left to do" in again.stdout
    assert inspect(launch, run)["digest"] == digest


def test_another_recipe_in_the_folder_is_refused_with_its_keys(
    launch: "Launch", tmp_path: Path
) -> None:
    command = ("run", "digits", *QUICK, "--output", str(tmp_path / "run"))
    assert launch(0, *command).returncode == 0
    refused = launch(2, "run", "digits", "--output", str(tmp_path / "run"))
    assert refused.returncode == 2
    assert "generations: 3 -> 8" in refused.stderr
    assert "population.offspring: 9 -> 32" in refused.stderr
    assert "--set generations=..." in refused.stderr
    assert "Traceback" not in refused.stderr
    # Who names a key means it, but a finished run stays as it is.
    refused = launch(2, *command, "--set", "seed=7")
    assert refused.returncode == 2
    assert "holds a finished run of another recipe (seed: 1 -> 7)" in refused.stderr


def test_a_recipe_changes_on_purpose_where_set_names_the_key(
    launch: "Launch", tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("run", "digits", *QUICK, "--output", str(run))
    assert launch(2, *command).returncode == 0
    optimizer = "sgd.optimizers.0.learning_rate"
    changed = ("--set", "generations=5", "--set", f"{optimizer}=[0.01, 0.1]")
    done = launch(3, *command, *changed)
    assert done.returncode == 0, done.stderr
    assert "changed on purpose: generations: 3 -> 5" in done.stdout
    assert "going on from generation 3" in done.stdout
    checkpoint = open_checkpoint(run)
    assert checkpoint.generation == 5
    assert [(c.generation, c.key, c.new) for c in checkpoint.history.changes] == [
        (3, "generations", "5"),
        (3, optimizer, "[0.01, 0.1]"),
    ]


def test_sigusr2_makes_a_checkpoint_and_the_run_goes_on(launch: "Launch", tmp_path: Path) -> None:
    run = tmp_path / "run"
    sets = (*ENDLESS, "--set", "checkpoint.every=1000")
    process = launch.start(2, "run", "digits", *sets, "--output", str(run))
    read_until(process, "generation 2/")
    os.kill(process.pid, signal.SIGUSR2)
    deadline = time.monotonic() + 60
    while (newest := (run / "latest").readlink().name) == "gen_000000":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert newest >= "gen_000002"
    assert process.poll() is None
    os.kill(process.pid, signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 99
    assert inspect(launch, run)["generation"] >= int(newest.removeprefix("gen_"))


def read_until(process: "subprocess.Popen[str]", text: str) -> None:
    """Read the standard output up to the first line that holds the text."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    assert process.stderr is not None
    raise AssertionError(f"no line with {text!r}: {process.stderr.read()}")


LONG = ("--set", "generations=6", "--set", "sgd.epochs=2", "--set", "population.offspring=9")
ENDLESS = ("--set", "generations=500", "--set", "sgd.epochs=2")


@pytest.mark.parametrize("ranks_again", [2, 3])
def test_a_killed_run_goes_on_to_the_digest_of_one_that_was_not(
    launch: "Launch", tmp_path: Path, ranks_again: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launch(2, "run", "digits", *LONG, "--output", str(whole)).returncode == 0
    process = launch.start(2, "run", "digits", *LONG, "--output", str(killed))
    read_until(process, "generation 3/")
    launch.kill(process)
    again = launch(ranks_again, "run", "digits", *LONG, "--output", str(killed))
    assert again.returncode == 0, again.stderr
    assert re.search(r"gen_00000[2-6] is verified", again.stdout)
    assert inspect(launch, killed)["digest"] == inspect(launch, whole)["digest"]


@pytest.mark.parametrize(
    ("number", "target"),
    [(signal.SIGTERM, "rank"), (signal.SIGUSR1, "rank"), (signal.SIGUSR1, "launcher")],
)
def test_a_signal_to_one_rank_or_the_launcher_stops_all_at_a_checkpoint_with_status_99(
    launch: "Launch", tmp_path: Path, number: signal.Signals, target: str
) -> None:
    run = tmp_path / "run"
    command = ("run", "digits", *LONG, "--set", "generations=40", "--output", str(run))
    process = launch.start(2, *command)
    read_until(process, "generation 2/")
    os.kill(ranks_of(process.pid)[-1] if target == "rank" else process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 99, stderr
    assert "start the same command again" in stderr
    if target == "launcher":  # which passes it on to all
        assert stderr.count(f"esgd: {number.name}: the run stops at its next epoch or child") == 1
    generation = inspect(launch, run)["generation"]
    assert 2 <= generation < 40
    again = launch(2, *command[:-4], "--set", "generations=40", "--output", str(run), timeout=240)
    assert again.returncode == 0, again.stderr
    going_on = re.search(r"going on (from|in) generation (\d+)", again.stdout)
    assert going_on
    assert int(going_on[2]) == generation + (going_on[1] == "in")


def test_a_signal_that_comes_twice_at_once_still_stops_at_a_checkpoint(
    launch: "Launch", tmp_path: Path
) -> None:
    process = launch.start(1, "run", "digits", *ENDLESS, "--output", str(tmp_path / "run"))
    read_until(process, "generation 1/")
    (rank,) = ranks_of(process.pid)
    for _ in range(2):
        os.kill(rank, signal.SIGUSR1)
        time.sleep(0.05)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 99, stderr


def test_a_second_job_in_the_same_folder_is_refused_and_told_whose_it_is(
    launch: "Launch", tmp_path: Path
) -> None:
    command = ("run", "digits", *ENDLESS, "--output", str(tmp_path / "run"))
    process = launch.start(1, *command)
    read_until(process, "generation 1/")
    (rank,) = ranks_of(process.pid)
    second = launch(2, *command)
    assert second.returncode == 2
    assert f"in use by another run (host {socket.gethostname()}, process {rank}" in second.stderr
    os.kill(rank, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 99
    assert not (tmp_path / "run" / "lock").exists()


def ranks_of(launcher: int) -> list[int]:
    """Return the processes of ours that the launcher has started, in the order of their numbers."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(int(child) for child in children)


TROUBLE = """
import os, time
import torch
from esgd_hpc import ClassificationTask

class Trouble(ClassificationTask):
    def __init__(self):
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        super().__init__(training=(x, torch.arange(40) % 2), validation=(x, torch.arange(40) % 2))

    def model(self):
        return torch.nn.Linear(3, 2)

    def augment(self, batch):
        if os.environ.get("TROUBLE") == "interrupt" and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            raise SystemExit("this rank leaves")
        return batch

def task():
    if os.environ.get("TROUBLE") == "task" and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        raise FileNotFoundError("no data on this node")
    return Trouble()
"""


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    """Write a task that can fail on one rank, and its recipe; return the recipe's path."""
    (tmp_path / "trouble.py").write_text(TROUBLE)
    recipe = tmp_path / "trouble.toml"
    recipe.write_text(
        'task = "trouble:task"\ngenerations = 2\n[population]\nparents = 4\noffspring = 4\n'
        '[[sgd.optimizers]]\nname = "sgd"\nlearning_rate = 0.1\n'
    )
    return recipe


def test_what_escapes_on_one_rank_ends_all_with_its_traceback_once(
    launch: "Launch", trouble: Path
) -> None:
    started = time.monotonic()
    done = launch(3, "run", str(trouble), cwd=trouble.parent, env={"TROUBLE": "interrupt"})
    assert done.returncode not in (0, 2, 99)
    assert done.stderr.count("Traceback") == 1
    assert "rank 1 failed" in done.stderr
    assert "this rank leaves" in done.stderr
    assert time.monotonic() - started < 60


def test_logs_on_request_name_rank_and_group(launch: "Launch", trouble: Path) -> None:
    sets = ("--set", "topology.ranks_per_group=2", "--set", 'topology.gradient_averaging="mpi"')
    done = launch(4, "run", str(trouble), *sets, "--log-level", "debug", cwd=trouble.parent)
    assert done.returncode == 0, done.stderr
    for rank, group in ((0, 0), (1, 0), (2, 1), (3, 1)):
        assert re.search(rf"rank {rank} group {group} (INFO|DEBUG) individual \d, gen", done.stderr)


def test_horovod_without_thread_multiple_is_refused_with_the_remedy(
    launch: "Launch", trouble: Path
) -> None:
    sets = ("--set", "topology.ranks_per_group=2", "--set", 'topology.gradient_averaging="horovod"')
    done = launch(
        2, "run", str(trouble), *sets, cwd=trouble.parent,
        env={"MPI4PY_RC_THREAD_LEVEL": "serialized"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("esgd: error:") == 1
    assert "MPI_THREAD_MULTIPLE" in done.stderr
    assert "choose torch or mpi" in done.stderr


def test_a_task_that_fails_to_load_on_one_rank_is_one_message_for_all(
    launch: "Launch", trouble: Path
) -> None:
    done = launch(3, "run", str(trouble), cwd=trouble.parent, env={"TROUBLE": "task"})
    assert done.returncode in (1, 2)
    assert done.stderr.count("esgd: error:") == 1
    assert "no data on this node" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_says_what_would_run_and_writes_nothing(launch: "Launch", trouble: Path) -> None:
    done = launch(2, "run", str(trouble), "--dry-run", cwd=trouble.parent)
    assert done.returncode == 0, done.stderr
    assert "4 individuals of 8 parameters, 4 offspring, 2 generations" in done.stdout
    assert "2 groups of 1 rank" in done.stdout
    assert sorted(p.name for p in trouble.parent.iterdir() if p.name != "__pycache__") == [
        "trouble.py",
        "trouble.toml",
    ]


def test_the_example_outside_the_package_trains(launch: "Launch", tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = launch(
        2, "run", "recipe.toml", "--set", "generations=2", "--output", str(run), cwd=EXAMPLE
    )
    assert done.returncode == 0, done.stderr
    assert inspect(launch, run)["generation"] == 2


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with prepared Fashion-MNIST."""
    if not FASHION.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    folder = tmp_path_factory.mktemp("data")
    prepare("fashion", FASHION, folder / "fashion.h5", lambda _: None)
    return folder


@pytest.mark.parametrize("averaging", ["horovod", "torch", "mpi"])
def test_two_groups_of_two_ranks_train_on_real_images(
    launch: "Launch", tmp_path: Path, fashion: Path, averaging: str
) -> None:
    run = tmp_path / "run"
    sets = {
        "topology.ranks_per_group": "2",
        "topology.gradient_averaging": f'"{averaging}"',
        "generations": "2",
        "population.parents": "4",
        "population.offspring": "4",
        "task_options.training_images": "2000",
        "task_options.validation_images": "1000",
    }
    overrides = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    command = ("run", "fashion-small", *overrides, "--output", str(run))
    done = launch(4, *command, env={"ESGD_DATA": str(fashion)}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"2 groups of 2 ranks averaging by {averaging}" in done.stdout
    found = inspect(launch, run)
    assert found["best"]["metrics"]["error_rate"] < 0.5
    assert found["groups"] == 2


LIMITED = """
import os, resource
from esgd_hpc.tasks.digits import digits

def task():
    if "LIMIT" in os.environ:  # as a quota: no file of this rank may be larger
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]), hard))
    return digits()
"""


def test_a_run_without_room_goes_on_says_so_and_loses_nothing_but_its_last_generations(
    launch: "Launch", tmp_path: Path
) -> None:
    (tmp_path / "limited.py").write_text(LIMITED)
    run = tmp_path / "run"
    task = ("--set", 'task="limited:task"', "--set", "population.offspring=9")
    command = ("run", "digits", *task, "--output", str(run))
    done = launch(2, *command, "--set", "generations=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    more = ("--set", "generations=5")
    full = launch(2, *command, *more, cwd=tmp_path, env={"LIMIT": "50000"})
    assert full.returncode == 1
    lines = [line for line in full.stdout.splitlines() if line.startswith("generation ")]
    assert [line.split()[1] for line in lines] == ["3/5", "4/5"]
    told = r"leader_0000\d.h5: cannot be written: File too large; the newest .* generation 2, and"
    assert len(re.findall(told, full.stderr)) == 2
    told = "the newest complete checkpoint is generation 2, what came after it is lost; make room"
    assert f"File too large; {told}" in full.stderr
    assert "Traceback" not in full.stderr
    assert inspect(launch, run)["generation"] == 2
    again = launch(3, *command, *more, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "going on from generation 2" in again.stdout
    whole = launch(
        1, "run", "digits", *task, *more, "--output", str(tmp_path / "whole"), cwd=tmp_path
    )
    assert whole.returncode == 0, whole.stderr
    assert inspect(launch, run)["digest"] == inspect(launch, tmp_path / "whole")["digest"]


def test_a_tensorboard_log_on_request_grows_over_restarts(launch: "Launch", tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    command = ("run", "digits", *QUICK, "--set", "logging.tensorboard=true", "--output", str(run))
    assert launch(2, *command).returncode == 0
    done = launch(1, *command, "--set", "generations=4")
    assert done.returncode == 0, done.stderr
    log = EventAccumulator(str(run / "tensorboard")).Reload()
    steps = [(event.step, event.value) for event in log.Scalars("fitness/best")]
    assert [step for step, _ in steps] == [0, 1, 2, 3, 4]
    assert [value for _, value in steps] == pytest.approx(inspect(launch, run)["history"]["best"])


def test_a_signal_while_the_run_starts_is_remembered(launch: "Launch", tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch.start(1, "run", "digits", *ENDLESS, "--output", str(run))
    rank = wait_for_rank(process.pid)
    wait_for_handler(rank, signal.SIGUSR1)
    assert not run.exists(), "it has not begun"
    os.kill(rank, signal.SIGUSR1)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 99, stderr
    assert inspect(launch, run)["generation"] == 0


def wait_for_rank(launcher: int) -> int:
    """Wait until a rank runs a program of its own: until then it has its launcher's handlers."""
    deadline = time.monotonic() + 60
    program = Path(f"/proc/{launcher}/exe")
    while not (ranks := ranks_of(launcher)) or samefile(program, f"/proc/{ranks[0]}/exe"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return ranks[0]


def wait_for_handler(pid: int, number: signal.Signals) -> None:
    """Wait until a process catches a signal, by the kernel's word."""
    deadline = time.monotonic() + 60
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)  # type: ignore[index]
        if caught >> (number - 1) & 1:
            return
        assert time.monotonic() < deadline
        time.sleep(0.001)
