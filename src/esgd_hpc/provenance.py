"""What made a run, for its files: command line, hosts, versions, and the commit of the source."""

import os
import platform
import shlex
import socket
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = ("esgd-hpc", "torch", "numpy", "mpi4py", "h5py", "horovod")


def provenance() -> dict[str, str]:
    """Return name to text. Reads the file system: call it on rank 0."""
    return {
        "command": shlex.join(sys.argv),
        "host": socket.gethostname(),
        "folder": _folder(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "esgd-hpc commit": git_commit(Path(__file__).parent),
        "commit": git_commit(Path(_folder())),
    }


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "deleted"


def git_commit(folder: Path) -> str:
    """Return the commit that is checked out around a folder, "unknown" where there is none.

    Reads the files of git, for a process with MPI in it should not start others.
    """
    try:
        for place in (folder, *folder.parents):
            git = place / ".git"
            if git.is_file():  # a worktree or a submodule
                git = place / git.read_text().removeprefix("gitdir:").strip()
            if git.is_dir():
                return _head(git)
    except (OSError, ValueError):
        pass
    return "unknown"


def _head(git: Path) -> str:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    common = git / "commondir"
    shared = git / common.read_text().strip() if common.exists() else git
    for place in (git / name, shared / name):
        if place.exists():
            return place.read_text().strip()
    packed = (shared / "packed-refs").read_text().splitlines()
    found = [line.split()[0] for line in packed if line.endswith(f" {name}")]
    return found[0] if found else "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
