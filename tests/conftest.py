"""Tests in one process, over MPI ranks, and of the command line.

    tests/unit       one process
    tests/parallel   under `mpiexec -n N python -m pytest tests/parallel`, those marked parallel(N)
    tests/system     start esgd themselves, through `launch`

ESGD_NO_SKIPS=1 makes a failure of every skip, other than of `gpu` tests.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import ExceptionRepr
from hypothesis import settings

if TYPE_CHECKING:
    from mpi4py import MPI

PARALLEL = Path(__file__).parent / "parallel"
NO_SKIPS = os.environ.get("ESGD_NO_SKIPS") == "1"
STARTED_BY_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
SECONDS_TO_STOP = 10


def _world() -> "MPI.Intracomm | None":
    """Return the world where mpiexec has started us with others; MPI is not touched elsewhere."""
    if not any(name in os.environ for name in STARTED_BY_MPI):
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD if MPI.COMM_WORLD.size > 1 else None


WORLD = _world()
NUM_RANKS = WORLD.size if WORLD else 1


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the marks; leave the report to rank 0; give all ranks the same examples."""
    for mark in (
        "parallel(*ranks): run under mpiexec with each of these numbers of ranks",
        "gpu: needs a CUDA GPU",
        "slow: takes more than ten seconds",
    ):
        config.addinivalue_line("markers", mark)
    same_examples = WORLD is not None or "CI" in os.environ
    settings.register_profile(
        "esgd",
        deadline=None,
        derandomize=same_examples,
        database=None if same_examples else settings.get_profile("default").database,
    )
    settings.load_profile("esgd")
    if WORLD and WORLD.rank > 0:
        reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        reporter._tw._file = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


# ---------------------------------------------------------------- which tests run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests for this number of ranks; skip those of GPUs where there is none."""
    chosen = [item for item in items if NUM_RANKS in _ranks(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip("torch.cuda.is_available() is False"))


def _ranks(item: pytest.Item) -> tuple[int, ...]:
    mark = item.get_closest_marker("parallel")
    if mark is None:
        if item.path.is_relative_to(PARALLEL):
            raise pytest.UsageError(f"{item.nodeid}: say for how many ranks: mark.parallel(1, 2)")
        return (1,)
    ranks: tuple[int, ...] = mark.args
    if not ranks or mark.kwargs or not all(type(n) is int and n > 0 for n in ranks):
        raise pytest.UsageError(f"{item.nodeid}: mark.parallel takes numbers of ranks: {ranks}")
    return ranks


# ---------------------------------------------------------------- how they end


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin each test together, so that a rank never meets another one in an earlier test."""
    if WORLD:
        WORLD.Barrier()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Refuse skips where asked; end all ranks when one fails, for the others may wait for it."""
    report = yield
    if NO_SKIPS and not item.get_closest_marker("gpu"):
        _refuse_skip(report)
    if WORLD and report.failed:
        _abort(item.config, WORLD, report.nodeid, report.longreprtext, report.sections)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse the skip of a whole module where asked; end all ranks when one cannot collect."""
    report = yield
    if NO_SKIPS:
        _refuse_skip(report)
    if WORLD and report.failed:
        _abort(collector.config, WORLD, report.nodeid, report.longreprtext, report.sections)
    return report


def pytest_internalerror(excrepr: ExceptionRepr) -> None:
    """End all ranks when pytest fails on one."""
    if WORLD:
        print(f"rank {WORLD.rank} of {WORLD.size}: {excrepr}", file=sys.stderr, flush=True)
        WORLD.Abort(1)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"ESGD_NO_SKIPS=1, and this was to be skipped: {reason}"


def _abort(
    config: pytest.Config,
    world: "MPI.Intracomm",
    nodeid: str,
    failure: str,
    sections: list[tuple[str, str]],
) -> None:
    output = "\n".join(f"---- {title} ----\n{text.rstrip()}" for title, text in sections)
    message = f"rank {world.rank} of {world.size}: {nodeid} failed"
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{message}\n{failure}\n{output}", file=sys.stderr, flush=True)
        time.sleep(1)  # Other ranks that fail by themselves get to say so too.
        world.Abort(1)


@pytest.fixture(autouse=True)
def _same_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a unit test that leaves the environment changed."""
    before = dict(os.environ)
    yield
    if request.path.is_relative_to(PARALLEL.with_name("unit")):
        after = dict(os.environ)
        changed = [n for n in before.keys() | after.keys() if before.get(n) != after.get(n)]
        changed = sorted(n for n in changed if n != "PYTEST_CURRENT_TEST")
        assert not changed, f"environment variables left changed: {', '.join(changed)}"


# ---------------------------------------------------------------- starting esgd


class Launch:
    """Start `python -m esgd_hpc` under mpiexec; n = 0 is one process without mpiexec."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []
        self._scratch: list[str] = []

    def __call__(
        self,
        n: int,
        *esgd_args: str | Path,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end and return status and output; fail the test after `timeout` seconds."""
        __tracebackhide__ = True
        process = self.start(n, *esgd_args, env=env, cwd=cwd)
        ended = True
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            ended = False
            stop(process)
            stdout, stderr = process.communicate()
        if not ended:
            pytest.fail(
                f"{' '.join(map(str, esgd_args))} on {n} ranks did not end in {timeout} seconds\n"
                f"---- stdout ----\n{stdout}\n---- stderr ----\n{stderr}"
            )
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def start(
        self,
        n: int,
        *esgd_args: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Return the running process, in a session of its own; the end of the test stops it."""
        command = [sys.executable, "-m", "esgd_hpc", *map(str, esgd_args)]
        if n:
            command = [os.environ.get("ESGD_MPIEXEC", "mpiexec"), "-n", str(n), *command]
        # Open MPI names its folder by its process number, and one that was killed leaves it: the
        # next one of that number could not start. The path must be short, for sockets lie in it.
        scratch = tempfile.mkdtemp(prefix="esgd")
        self._scratch.append(scratch)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | {"TMPDIR": scratch} | dict(env or {}),
            cwd=cwd,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        """End a process of `start` and all its ranks at once, as a lost node would."""
        for pid in [process.pid, *_session(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """Stop what still runs."""
        for process in self._started:
            stop(process)
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        for scratch in self._scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process of `Launch.start` with its ranks: kindly, so that mpiexec cleans up, then all.

    Ranks have process groups of their own; what they share with mpiexec is the session.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
    for pid in _session(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _session(leader: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == leader:
                found.append(int(folder.name))
        except (ProcessLookupError, PermissionError):
            continue
    return found


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Return `launch(n, *esgd_args, env=None, timeout=120, cwd=None) -> CompletedProcess`."""
    launcher = Launch()
    yield launcher
    launcher.close()
