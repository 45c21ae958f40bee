"""A run that is killed at any moment, and started again, ends as if nothing had happened."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from system.kills import kill_again_and_again, prepare, undisturbed

if TYPE_CHECKING:
    from conftest import Launch

KILLS = 30


@pytest.mark.slow
def test_a_run_killed_at_thirty_random_moments_ends_as_one_that_was_not(
    launch: "Launch", tmp_path: Path
) -> None:
    """At each restart with other numbers of groups. What was valid once is never lost."""
    prepare(tmp_path)
    digest = undisturbed(launch, tmp_path)
    kills = list(kill_again_and_again(launch, tmp_path, digest, KILLS, seed=1))
    assert len(kills) == KILLS
    # The kills must have come where they hurt, or the test says little.
    states = Counter(kill.state for kill in kills)
    assert sum(n for state, n in states.items() if state.startswith("gen_N.tmp")) >= 5, states
    assert {kill.victim for kill in kills} == {"all", "one rank"}
