"""`esgd check`: what the facts of all ranks mean, without ranks."""

import time
from pathlib import Path

import msgspec
import pytest

from esgd_hpc.config import Recipe, TopologySettings
from esgd_hpc.errors import InputError
from esgd_hpc.launch import Launched
from esgd_hpc.preflight import judge
from esgd_hpc.preflight.facts import Facts, TorchBuild, free_memory, torch_build
from esgd_hpc.preflight.rows import WIDTH, Row, failed, is_well, ranks_text, table, verdict
from esgd_hpc.recipe_file import recipe_from

GIBIBYTE = 2**30
CPU_BUILD = TorchBuild("2.13.0+cpu", "")
FACTS = Facts(
    rank=0,
    node=0,
    host="n1",
    cpus=(0, 1, 2, 3),
    free_memory=8 * GIBIBYTE,
    shared_memory=(GIBIBYTE, GIBIBYTE),
    visible={},
    gpu_files=False,
    gpus_on_node=0,
    torch_build=CPU_BUILD,
    mpi="Open MPI v5.0.11, package: x",
    thread_level=3,
    launched=None,
)


def ranks(*per_node: int, **same: object) -> list[Facts]:
    """Return facts of so many ranks on each node."""
    found: list[Facts] = []
    for number, count in enumerate(per_node, start=1):
        first = len(found)
        found += [
            msgspec.structs.replace(FACTS, rank=first + i, node=first, host=f"n{number}", **same)
            for i in range(count)
        ]
    return found


def each(facts: list[Facts], name: str, *values: object) -> list[Facts]:
    """Return the facts with one of these values for each rank."""
    return [
        msgspec.structs.replace(rank, **{name: value})
        for rank, value in zip(facts, values, strict=True)
    ]


def recipe(ranks_per_group: int = 1, parents: int = 8) -> Recipe:
    optimizer = {"name": "sgd", "learning_rate": 0.1}
    return recipe_from(
        {
            "task": "digits",
            "population": {"parents": parents, "offspring": 4},
            "sgd": {"optimizers": [optimizer]},
            "topology": {"ranks_per_group": ranks_per_group},
        }
    )


def only(rows: list[Row], name: str) -> Row:
    (row,) = (row for row in rows if row.name == name)
    assert row.remedy or row.status == "ok"  # every failure with its remedy
    return row


# MPI and ranks ------------------------------------------------------------------------------------


def test_mpi_needs_threads_only_for_horovod() -> None:
    weak = ranks(2, thread_level=1)
    assert only(judge.mpi_rows(weak, "4.1", needs_threads=False), "threads").status == "warning"
    assert only(judge.mpi_rows(weak, "4.1", needs_threads=True), "threads").status == "failed"
    assert is_well(judge.mpi_rows(ranks(2), "4.1", needs_threads=True))


def test_two_mpi_libraries_in_one_world_fail() -> None:
    mixed = each(ranks(1, 1), "mpi", "Open MPI v5.0.11, x", "Open MPI v4.1.6, x")
    row = only(judge.mpi_rows(mixed, "4.1", needs_threads=False), "library")
    assert row.status == "failed"
    assert "v5.0.11 and Open MPI v4.1.6" in row.finding


def test_the_world_is_compared_with_the_launcher_and_spread_evenly() -> None:
    srun = Launched("srun", 4, "SLURM_STEP_NUM_TASKS")
    even = judge.world_rows(ranks(2, 2, launched=srun), {})
    assert [row.status for row in even] == ["ok", "ok"]
    uneven = judge.world_rows(ranks(3, 1, launched=srun._replace(size=8)), {})
    assert [row.status for row in uneven] == ["warning", "warning"]
    assert "srun says 8" in uneven[0].finding
    assert "1 on n2, 3 on n1" in uneven[1].finding
    alone = judge.world_rows(ranks(1), {"SLURM_NTASKS": "4"})
    assert "srun" in only(alone, "launcher").remedy


def test_groups_have_work_and_stay_on_a_node() -> None:
    assert is_well(judge.group_rows(ranks(4, 4), recipe(2)))
    assert only(judge.group_rows(ranks(4), recipe(parents=6)), "work").finding.endswith(
        "1 or 2 a group"
    )
    idle = only(judge.group_rows(ranks(4, 4), recipe(parents=2)), "work")
    assert (idle.status, "topology.ranks_per_group = 4" in idle.remedy) == ("warning", True)
    astride = only(judge.group_rows(ranks(3, 3), recipe(2)), "number")
    assert (astride.status, "group 1 is on n1 and n2" in astride.finding) == ("warning", True)
    # Groups of more ranks than a node has cannot do otherwise.
    assert only(judge.group_rows(ranks(2, 2), recipe(4)), "number").status == "ok"


# CPUs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpus", "threads", "told"),
    [
        ([(0,), (1,)], 1, ""),
        ([(0, 1), (0, 1)], 1, ""),
        ([(0,), (0,)], 1, "ranks 0 and 1 on n1 are both bound to CPU 0"),
        ([(0, 1), (2, 3)], 4, "topology.threads_per_rank = 4"),
        ([(0, 1), (0, 1)], 2, "n1 has 2 CPUs for 2 ranks with 2 threads"),
    ],
)
def test_cpus_are_enough_for_every_rank(
    cpus: list[tuple[int, ...]], threads: int, told: str
) -> None:
    row = only(judge.cpu_rows(each(ranks(2), "cpus", *cpus), threads), "binding")
    assert (row.status, told in row.finding) == ("warning" if told else "ok", True)


def test_the_same_cpu_of_two_nodes_is_not_the_same() -> None:
    assert only(judge.cpu_rows(ranks(1, 1, cpus=(0,)), 1), "binding").status == "ok"


# GPUs ---------------------------------------------------------------------------------------------

AUTO = TopologySettings()


def test_no_gpus_are_right_unless_demanded() -> None:
    assert is_well(judge.gpu_rows(ranks(2), AUTO))
    demanded = only(judge.gpu_rows(ranks(2), TopologySettings(device="cuda")), "visible")
    assert demanded.status == "failed"


def test_a_cpu_build_of_torch_beside_gpus_is_told() -> None:
    rows = judge.gpu_rows(ranks(2, gpu_files=True), AUTO)
    assert only(rows, "torch").status == "warning"
    cuda = TorchBuild("2.13.0", "CUDA 12.6")
    assert is_well(judge.gpu_rows(ranks(2, gpu_files=True, torch_build=cuda), AUTO))


@pytest.mark.parametrize(
    ("visible", "status", "told"),
    [
        (("0", "1"), "ok", "rank 0 takes its first, rank 1 takes its first"),
        (("0,1", "0,1"), "ok", "rank 0 takes its first, rank 1 takes its second"),
        (("0", "0"), "warning", "ranks 0 and 1 on n1"),
    ],
)
def test_the_binding_is_told_by_what_the_scheduler_shows(
    visible: tuple[str, str], status: str, told: str
) -> None:
    shown = each(ranks(2), "visible", *({"CUDA_VISIBLE_DEVICES": v} for v in visible))
    row = only(judge.gpu_rows(shown, AUTO), "binding")
    assert (row.status, told in row.finding) == (status, True)


def test_fewer_gpus_than_ranks_fail() -> None:
    shown = ranks(3, visible={"CUDA_VISIBLE_DEVICES": "0,1"})
    row = only(judge.gpu_rows(shown, AUTO), "binding")
    assert (row.status, "share_gpus" in row.remedy) == ("failed", True)


def test_a_rank_that_sees_no_gpu_beside_others_fails() -> None:
    shown = each(ranks(2), "visible", *({"ROCR_VISIBLE_DEVICES": v} for v in ("0", "")))
    row = only(judge.gpu_rows(shown, AUTO), "visible")
    assert (row.status, row.finding) == ("failed", "ranks that see no GPU, while others do: 1")


# Memory and time ----------------------------------------------------------------------------------


def test_memory_of_a_node_counts_its_ranks_leaders_and_data() -> None:
    values = 2**26  # a quarter of a GiB
    fits = judge.memory_rows(ranks(2, free_memory=60 * GIBIBYTE), recipe(), values, 0, 0)
    assert is_well(fits)
    tight = judge.memory_rows(ranks(2, free_memory=12 * GIBIBYTE), recipe(), values, 0, 0)
    assert only(tight, "node").status == "failed"
    data = 2**36
    assert not is_well(judge.memory_rows(ranks(2), recipe(), 100, data, 0))


def test_memory_of_the_smallest_gpu_counts_training_and_data() -> None:
    values, plenty = 2**26, ranks(2, free_memory=60 * GIBIBYTE)
    for data, status in ((0, "ok"), (7 * GIBIBYTE, "failed")):
        rows = judge.memory_rows(plenty, recipe(), values, data, 8 * GIBIBYTE)
        assert only(rows, "gpu").status == status


def test_data_that_shared_memory_cannot_hold_is_told() -> None:
    assert judge.shared_memory_rows(ranks(2), 0)[0].status == "ok"
    row = only(judge.shared_memory_rows(ranks(2), 2**30), "shared")
    assert (row.status, "--shm-size" in row.remedy) == ("warning", True)


def test_the_tightest_control_group_limits_memory(tmp_path: Path) -> None:
    for folder in ("proc/self", "sys/fs/cgroup/job/step"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  1000 kB\n")
    assert free_memory(tmp_path) == 1000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    assert free_memory(tmp_path) == 1000 * 1024
    for name, limit in (("job", "5000"), ("job/step", "max")):
        group = tmp_path / "sys/fs/cgroup" / name
        (group / "memory.max").write_text(limit)
        (group / "memory.current").write_text("3000")
        (group / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    assert free_memory(tmp_path) == 3000


def test_the_end_of_the_job_is_told() -> None:
    end = {"ESGD_END_TIME": str(time.time() + 3601)}
    assert "ends in 60 minutes" in only(judge.job_rows(end, 0.0), "time").finding
    assert only(judge.job_rows({"SLURM_JOB_ID": "7"}, 0.0), "time").status == "warning"
    assert only(judge.job_rows({"SLURM_JOB_ID": "7"}, 30.0), "time").status == "ok"
    assert only(judge.job_rows({"ESGD_END_TIME": "1"}, 0.0), "time").status == "failed"
    assert only(judge.job_rows({}, 0.0), "time").status == "ok"


# Rows ---------------------------------------------------------------------------------------------


def test_the_table_fits_and_keeps_every_word() -> None:
    path = "/scratch/" + "x" * 150
    rows = [
        Row("output", "folder", "failed", f"{path}: cannot be written", "name another " * 12),
        Row("job", "time", "ok", "job 7"),
    ]
    lines = table(rows)
    assert max(map(len, lines)) <= WIDTH
    assert path in "".join(line.strip() for line in lines)
    assert " ".join(lines).split().count("another") == 12
    assert lines[0].startswith("FAILED   output  folder")


def test_a_message_becomes_finding_and_remedy() -> None:
    row = failed("groups", "number", InputError("6 is no multiple of 4; start 4 or 8; or else"))
    assert row[3:] == ("6 is no multiple of 4", "start 4 or 8; or else")
    assert not is_well([row])
    assert verdict([row]) == "1 failed"
    warning = row._replace(status="warning")
    assert is_well([warning])
    assert verdict([row, warning, warning]) == "1 failed, 2 warnings"
    assert verdict([]) == "all well"


def test_ranks_are_told_in_spans() -> None:
    assert ranks_text([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranks_text(range(0, 100, 2)).endswith("10, ...")


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    import torch

    built = torch_build()
    assert built.version == torch.__version__
    assert bool(built.gpus) == bool(torch.version.cuda or torch.version.hip)
