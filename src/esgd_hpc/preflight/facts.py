"""What one rank sees around it: CPUs, memory, GPUs. Knows no MPI and imports no torch."""

import ast
import importlib.util
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec

from esgd_hpc.device import UNKNOWN, VISIBLE_VARIABLES
from esgd_hpc.launch import Launched, launched

SHARED_MEMORY = Path("/dev/shm")
_GPU_FILES = ("nvidia[0-9]*", "kfd")
"""Under /dev, where there are GPUs of NVIDIA and AMD."""


class TorchBuild(NamedTuple):
    """Which torch is installed."""

    version: str
    gpus: str
    """What GPUs it is built for, such as "CUDA 12.6"; "" for none."""

    def __str__(self) -> str:
        return f"torch {self.version}, built for {self.gpus or 'CPUs only'}"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank sees."""

    rank: int
    node: int
    """World rank of the first rank of its node."""
    host: str
    cpus: tuple[int, ...]
    """Those that this process may use."""
    free_memory: int
    """Bytes of the node that are left for all its ranks."""
    shared_memory: tuple[int, int]
    """Bytes of /dev/shm that are free, and all; (0, 0) where there is none."""
    visible: dict[str, str]
    """What the variables that name visible GPUs say."""
    gpu_files: bool
    """Whether the node has devices that are GPUs."""
    gpus_on_node: int
    """As Slurm says; 0 where it does not."""
    torch_build: TorchBuild
    mpi: str
    """What the MPI library says of itself."""
    thread_level: int
    launched: Launched | None

    @property
    def has_gpus(self) -> bool:
        """Whether there are GPUs, as far as can be seen without torch."""
        if self.visible:
            return bool(self.named_gpus)
        return self.gpu_files or self.gpus_on_node > 0

    @property
    def uses_gpus(self) -> bool:
        """Whether torch has to be asked for GPUs."""
        return self.has_gpus and bool(self.torch_build.gpus)

    @property
    def named_gpus(self) -> tuple[str, ...]:
        """As many GPUs as the scheduler lets this rank see, by names that tell nothing."""
        if not self.visible:
            return (UNKNOWN,) * self.gpus_on_node
        names = [value.replace(" ", "").split(",") for value in self.visible.values()]
        # Where several variables name GPUs, each hides some of them.
        return (UNKNOWN,) * min(
            sum(name not in ("", "-1", "NoDevFiles") for name in some) for some in names
        )


def look_around(
    rank: int, node: int, library: str, thread_level: int, environment: Mapping[str, str]
) -> Facts:
    """Return what this process sees."""
    visible = {name: environment[name] for name in VISIBLE_VARIABLES if name in environment}
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    shared = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    return Facts(
        rank=rank,
        node=node,
        host=os.uname().nodename,
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        free_memory=free_memory(),
        shared_memory=(shared.free, shared.total) if shared else (0, 0),
        visible=visible,
        gpu_files=any(any(Path("/dev").glob(pattern)) for pattern in _GPU_FILES),
        gpus_on_node=int(on_node) if on_node.isdecimal() else 0,
        torch_build=torch_build(),
        mpi=library,
        thread_level=thread_level,
        launched=launched(environment),
    )


def torch_build() -> TorchBuild:
    """Return which torch is installed, read from its files: importing it takes seconds."""
    version = metadata.version("torch")
    found = importlib.util.find_spec("torch")
    values: dict[str, str | None] = {}
    if found is not None and found.origin:
        for line in ast.parse(Path(found.origin).with_name("version.py").read_text("utf-8")).body:
            if isinstance(line, ast.AnnAssign | ast.Assign) and isinstance(
                line.value, ast.Constant
            ):
                target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
                values[ast.unparse(target)] = line.value.value  # type: ignore[assignment]
    if values.get("hip"):
        return TorchBuild(version, f"ROCm {values['hip']}")
    return TorchBuild(version, f"CUDA {values['cuda']}" if values.get("cuda") else "")


# Memory -------------------------------------------------------------------------------------------


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process and its neighbours can still have on this node.

    What the kernel calls available, or what the tightest limit of its control groups leaves.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    known = dict(line.split(":") for line in lines if ":" in line)
    free = int(known["MemAvailable"].split()[0]) * 1024
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return free
    for line in groups:
        _, controllers, path = line.split(":", 2)
        below = Path(path.lstrip("/"))
        for folder in (below, *below.parents) if path != "/" else (Path(),):
            if controllers == "":
                place = root / "sys/fs/cgroup" / folder
                left = _left(place, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                place = root / "sys/fs/cgroup/memory" / folder
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                left = _left(place, *names)
            else:
                continue
            free = min(free, left) if left is not None else free
    return free


def _left(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    """Return what a control group leaves: cached files make room when it is needed."""
    try:
        told = (folder / limit).read_text().strip()
        if not told.isdecimal():  # "max"
            return None
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return max(0, int(told) - used + int(stat.get(cache, 0)))
