"""The cluster that the tests of this folder share, and what they submit to it."""

import os
from collections.abc import Iterator

import pytest

from slurm.cluster import Cluster, Job, reason_to_skip
from slurm.desk import ENVIRONMENT, SMALL, Desk


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return a running cluster; it ends with the tests."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    if not ENVIRONMENT.exists():
        pytest.skip(f"{ENVIRONMENT} not found; install with: cmake --workflow --preset test")
    started = Cluster({name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ})
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture(scope="session")
def desk(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(cluster, tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="session")
def plain_job(desk: Desk) -> Job:
    """Return the job that nothing happens to, for others to be compared with."""
    script = desk.edited("slurm/groups.sh", "plain", RANKS_PER_GROUP="2")
    return desk.submit(script, "--nodes=2", "--ntasks-per-node=2", *SMALL)


@pytest.fixture(scope="module", autouse=True)
def _all_jobs_at_once(request: pytest.FixtureRequest) -> None:
    """Submit the jobs of all chosen tests of a module first: much of their time is Slurm's.

    Jobs are fixtures whose names end in `_job` or `_jobs`; they come in the order of the tests.
    """
    tests = [item for item in request.session.items if item.path == request.path]
    for name in [name for test in tests for name in getattr(test, "fixturenames", ())]:
        if name.endswith(("_job", "_jobs")):
            request.getfixturevalue(name)
