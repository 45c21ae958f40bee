"""A job that starts itself again from the same state stops; one that gets further does not."""

from pathlib import Path

import pytest

from esgd_hpc.attempts import NAME, count_attempt
from esgd_hpc.errors import RunError


def start(folder: Path, state: str, job: str = "slurm-7") -> None:
    count_attempt(folder, state, {"ESGD_JOB": job})


def test_the_third_start_of_a_job_from_the_same_state_is_refused(tmp_path: Path) -> None:
    start(tmp_path, "generation 1")
    for _ in range(2):
        start(tmp_path, "generation 2, 3 of 8 individuals trained")
    for _ in range(2):  # and stays so
        with pytest.raises(
            RunError,
            match=r"job slurm-7 has started 2 times from generation 2, 3 of 8 .* no further",
        ):
            start(tmp_path, "generation 2, 3 of 8 individuals trained")
    start(tmp_path, "generation 2, 3 of 8 individuals trained", job="slurm-8")


def test_progress_in_between_counts(tmp_path: Path) -> None:
    for state in ("1", "1", "2", "2", "3", "3", "2", "3"):
        start(tmp_path, state)


def test_who_starts_by_hand_is_not_counted(tmp_path: Path) -> None:
    for _ in range(5):
        count_attempt(tmp_path, "generation 1", {})
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"job": 3}', b"\xff", b'{"job": "slurm-7"}'])
def test_a_damaged_record_stops_no_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    for _ in range(2):
        start(tmp_path, "generation 1")
    with pytest.raises(RunError):
        start(tmp_path, "generation 1")
