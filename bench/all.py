"""Run the benchmarks and write what they find as one page, bench/RESULTS.md.

    python bench/all.py [SECTION ...]

Without names all sections run, one after another, which takes about an hour; nothing else should
run on the machine meanwhile. With names only these run, and the others stay on the page as they
were; each says when, where and with which commit it was measured.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from measure import tell

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
SECTIONS = (
    "end_to_end",
    "exchange",
    "memory",
    "averaging",
    "scaling",
    "planning",
    "coordination",
    "cost_model",
    "checkpoint",
    "startup",
    "early_rejection",
)
HEAD = """\
# Benchmarks

Made by `python bench/all.py`; `python bench/all.py SECTION ...` measures some sections again.
Numbers are medians with the smallest and the largest value in brackets. How well ESGD trains is
another matter: [evidence](evidence/README.md).
"""


def main() -> None:
    """Run the sections that were asked for and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    wanted = parser.parse_args().sections or SECTIONS
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    found = read_page()
    failed = []
    for name in wanted:
        tell(f"{name} ...")
        started = time.monotonic()
        run = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py")], stdout=subprocess.PIPE, text=True
        )
        minutes = (time.monotonic() - started) / 60
        if run.returncode != 0:
            tell(f"{name} ended with status {run.returncode}")
            failed.append(name)
            continue
        found[name] = f"{run.stdout.strip()}\n\n{made_by(name, minutes)}"
        write_page(found)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; the page has the others")


def made_by(name: str, minutes: float) -> str:
    """Return when, where and with what a section was measured."""
    versions = {"torch": "torch", "numpy": "NumPy", "mpi4py": "mpi4py", "horovod": "Horovod"}
    parts = [f"{shown} {metadata.version(package)}" for package, shown in installed(versions)]
    return (
        f"*`python bench/{name}.py`, {time.strftime('%Y-%m-%d')}, commit {commit()}, in"
        f" {minutes:.1f} min; {processor()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB,"
        f" Linux {platform.release()}; Python {platform.python_version()}, {', '.join(parts)},"
        f" {mpi_version()}*"
    )


def installed(packages: dict[str, str]) -> Iterable[tuple[str, str]]:
    """Yield those of the packages that are installed, with the names to show."""
    for package, shown in packages.items():
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        yield package, shown


def commit() -> str:
    """Return the commit of the sources, with a + where they differ from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(HERE), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "..", f":!{PAGE.name}", ":!coordination.json")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def processor() -> str:
    """Return what the processor calls itself."""
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def memory_gib() -> float:
    """Return the size of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def mpi_version() -> str:
    """Return the first words of what mpiexec says of itself."""
    run = subprocess.run(["mpiexec", "--version"], capture_output=True, text=True, check=True)
    return run.stdout.partition("\n")[0]


def read_page() -> dict[str, str]:
    """Return the sections that are on the page, by name."""
    text = PAGE.read_text() if PAGE.exists() else ""
    parts = re.split(r"<!-- section (\w+) -->\n", text)[1:]
    return {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def write_page(found: dict[str, str]) -> None:
    """Write the page, sections in their order."""
    parts = [f"<!-- section {name} -->\n{found[name]}\n" for name in SECTIONS if name in found]
    PAGE.write_text("\n".join([HEAD, *parts]))


if __name__ == "__main__":
    main()
