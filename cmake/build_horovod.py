"""Build Horovod against this environment's torch and the given MPI, and install it.

Horovod 0.28.1 is the last release. Its C++14 does not compile with today's torch, so that C++17 is
put in its place. A wheel that was built before from the same parts is only installed again.
"""

import argparse
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
SDIST = f"horovod-{VERSION}.tar.gz"

OLD_STANDARD = "set(CMAKE_CXX_STANDARD 14)\n"
NEW_STANDARD = "set(CMAKE_CXX_STANDARD 17)\n"
PATCHED_FILES = ("CMakeLists.txt", "horovod/torch/CMakeLists.txt")
OPTIONS = {
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
    "HOROVOD_WITHOUT_GLOO": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_PYTORCH": "1",
}
BYTES_PER_COMPILER = 2 << 30


class BuildError(Exception):
    """A message for the user."""


def pip(*arguments: str | Path, env: dict[str, str] | None = None) -> None:
    """Run this environment's pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=env)


def fetch(work: Path, env: dict[str, str]) -> Path:
    """Return the checked source archive in `work`, from the package index unless it is there."""
    sdist = work / SDIST
    if not sdist.exists():
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(work)]
        try:
            pip("download", *options, f"horovod=={VERSION}", env=env)
        except subprocess.CalledProcessError:
            raise BuildError(
                f"pip could not download {SDIST}: check the network and the proxy, or put the file"
                f" into {work} yourself, and start again"
            ) from None
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SHA256:
        sdist.unlink()
        raise BuildError(f"{SDIST} has SHA-256 {digest}, expected {SHA256}; removed, start again")
    return sdist


def unpack(sdist: Path, folder: Path) -> Path:
    """Return the patched source tree in `folder`."""
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    source = folder / f"horovod-{VERSION}"
    for name in PATCHED_FILES:
        text = (source / name).read_text()
        count = text.count(OLD_STANDARD)
        if count != 1:
            raise BuildError(
                f"{name}: expected {OLD_STANDARD.strip()} once, found it {count} times"
            )
        (source / name).write_text(text.replace(OLD_STANDARD, NEW_STANDARD))
    return source


def link_mpi_wheel(bin_dir: Path, folder: Path) -> Path:
    """Return a prefix in `folder` whose compiler wrappers give paths without spaces.

    They print the prefix that they themselves lie in, and FindMPI splits what they print at spaces.
    It looks for the wrappers beside mpiexec.
    """
    (folder / "bin").mkdir(parents=True)
    for name in ("mpicc", "mpicxx", "mpiexec"):
        shutil.copy2(bin_dir / name, folder / "bin" / name)
    for name in ("bin/opal_wrapper", "etc", "include", "lib", "share"):
        (folder / name).symlink_to(bin_dir.parent / name)
    return folder


def num_jobs() -> int:
    """Return how many compilers this machine's cores and memory bear."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_PER_COMPILER))


def build(arguments: argparse.Namespace, wheels: Path) -> None:
    """Build the wheel into the empty folder `wheels`."""
    if arguments.cuda_home:
        _check_torch_has_cuda()
    env = dict(os.environ) | OPTIONS
    env["CXX"] = arguments.cxx
    env["MAKEFLAGS"] = f"-j{num_jobs()}"  # in place of the one of a make that started us
    env.pop("MFLAGS", None)
    if arguments.cuda_home:
        env["HOROVOD_GPU_OPERATIONS"] = "NCCL"
        env["HOROVOD_CUDA_HOME"] = arguments.cuda_home
        if arguments.nccl_home:
            env["HOROVOD_NCCL_HOME"] = arguments.nccl_home
    sdist = fetch(arguments.work, env)
    # Horovod's build files break on a space in a path.
    base = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(dir="/tmp" if " " in base else base) as scratch:
        source = unpack(sdist, Path(scratch))
        kind, bin_dir, _ = arguments.mpi
        prefix = Path(bin_dir).parent
        if kind == "wheel":
            prefix = link_mpi_wheel(Path(bin_dir), source / "mpi")
        env["MPI_HOME"] = str(prefix)
        env["PATH"] = os.pathsep.join([str(prefix / "bin"), env["PATH"]])
        env |= {"CCACHE_BASEDIR": scratch, "CCACHE_NOHASHDIR": "1"}
        options = [
            "--verbose",
            "--no-cache-dir",
            "--no-build-isolation",
            "--no-deps",
            "--wheel-dir",
            str(wheels),
        ]
        pip("wheel", *options, source, env=env)


def _check_torch_has_cuda() -> None:
    import torch

    if torch.version.cuda is None:
        raise BuildError(
            f"torch {torch.__version__} is a build without CUDA, and NCCL needs one with it: look"
            " where pip takes torch from (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)"
        )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="keeps the archive and the wheel")
    parser.add_argument("--cxx", required=True, help="C++ compiler")
    parser.add_argument("--mpi", nargs=3, required=True, metavar=("site|wheel", "BIN", "VERSION"))
    parser.add_argument("--cuda-home", default="", help="build the NCCL operations with this CUDA")
    parser.add_argument("--nccl-home", default="")
    return parser.parse_args(argv)


def main() -> int:
    """Build unless a wheel of the same parts is there; install."""
    arguments = parse()
    torch = importlib.metadata.version("torch")
    parts = [
        f"horovod {VERSION} {NEW_STANDARD.strip()} {OPTIONS}",
        f"torch {torch}",
        f"python {platform.python_version()} {sys.prefix}",
        f"mpi {arguments.mpi}",
        f"cuda {arguments.cuda_home} nccl {arguments.nccl_home}",
    ]
    key = "\n".join(parts)
    wheels = arguments.work / "wheels"
    record = wheels / "built-from.txt"
    try:
        if not (record.exists() and record.read_text() == key):
            shutil.rmtree(wheels, ignore_errors=True)
            wheels.mkdir(parents=True)
            build(arguments, wheels)
            record.write_text(key)
        pip("install", "--no-deps", "--force-reinstall", "--quiet", *wheels.glob("*.whl"))
    except (BuildError, OSError) as error:
        print(f"build_horovod: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(
            f"build_horovod: `{' '.join(map(str, error.cmd))}` failed with {error.returncode};"
            f" the compiler's message is above (compiler {arguments.cxx}, torch {torch},"
            f" MPI {arguments.mpi[2]})",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
