"""`--dry-run` of the paper's experiments on 128 ranks, where none of their data is."""

from pathlib import Path

import pytest
from mpi4py import MPI

from esgd_hpc.api import plan
from esgd_hpc.errors import InputError
from esgd_hpc.recipe_file import load_recipe

MEBIBYTE = 2**20


@pytest.mark.parametrize(
    ("name", "mu", "offspring", "parameters"),
    [
        ("bn50", 100, 400, 7_657_864),
        ("swb300", 100, 400, 30_064_128),
        ("cifar10", 128, 768, 269_722),
        ("ptb", 100, 400, 9_997_440),
    ],
)
def test_the_plan_for_128_ranks(
    name: str,
    mu: int,
    offspring: int,
    parameters: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ESGD_DATA", str(tmp_path))
    text = plan(load_recipe(name), MPI.COMM_SELF, output=tmp_path / "run", ranks=128)
    lines = text.splitlines()
    assert f"{mu} individuals of {parameters:,} parameters, {offspring} offspring" in lines[0]
    assert "128 groups of 1 rank" in lines[0]
    one = next(line for line in lines if line.startswith("one individual"))
    assert f"{parameters:,} values" in one or name == "cifar10"  # which has buffers too
    checkpoint = next(line for line in lines if line.startswith("one checkpoint"))
    size, unit = checkpoint.split(": ")[1].split()[:2]
    found = float(size) * {"MiB": MEBIBYTE, "GiB": 2**30}[unit]
    assert found == pytest.approx(4 * mu * parameters, rel=0.01)
    assert any(line.startswith("a leader holds at most") for line in lines)
    assert any(f"{name}.h5: no such file; prepare the data" in line for line in lines)
    assert "  population" in lines
    weights = [line for line in lines if "ptb-single.safetensors: no such file" in line]
    assert len(weights) == (2 if name == "ptb" else 0)  # the anchor, and what starts from it
    assert not (tmp_path / "run").exists()


def test_groups_of_four_ranks_own_more_each(tmp_path: Path) -> None:
    recipe = load_recipe("digits", ["topology.ranks_per_group=4"])
    text = plan(recipe, MPI.COMM_SELF, output=tmp_path / "run", ranks=8)
    # 8 individuals of 18.8 KiB on 2 groups: all own or on loan, up to 5 chosen, a child, 5 being
    # written.
    assert "2 groups of 4 ranks" in text
    assert "a leader holds at most 19 individuals while it exchanges: 357 KiB" in text


def test_ranks_that_make_no_whole_groups_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe("digits", ["topology.ranks_per_group=4"])
    with pytest.raises(InputError, match="world size 6 is not a multiple"):
        plan(recipe, MPI.COMM_SELF, output=tmp_path / "run", ranks=6)
