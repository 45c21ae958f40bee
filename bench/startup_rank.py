"""One rank of an `esgd` command that notes when it got how far; bench/startup.py starts it.

    python bench/startup_rank.py FOLDER [--files] run RECIPE ...

The program is the real one, in its own order: moments are those at which it says itself what it is
at (`esgd_hpc.pulse`). Only MPI is started by a call of its own, to tell that from the import. Each
rank leaves a file in FOLDER: {rank, moments {name: {seconds, ...}}}; seconds count from the start
of the node, for all processes alike. With --files a moment also has the files that Python opened
and the libraries that are mapped by then, and their bytes; this takes time.
"""

import sys
import time
from contextlib import contextmanager

moments: dict[str, dict[str, float]] = {}
opened: set[str] | None = None


def note(name: str) -> None:
    """Keep what has passed until now, under a name that was not there yet."""
    if name in moments:
        return
    moments[name] = {
        "seconds": time.clock_gettime(time.CLOCK_BOOTTIME),
        "processor": time.process_time(),
        "modules": len(sys.modules),
        "read": _bytes_read(),
    }
    if opened is not None:
        files = opened | _mapped()
        moments[name]["files"] = len(files)
        moments[name]["size"] = sum(map(_size, files))


def main() -> int:
    """Run the command that the words name, and write down its moments."""
    global opened
    note("Python")
    folder, *words = sys.argv[1:]
    if words[0] == "--files":
        opened, words = set(), words[1:]
        sys.addaudithook(_hear)
    from esgd_hpc.cli import main as esgd
    from esgd_hpc.parallel import world

    start = world.start_world

    def start_world():
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        ranks = start()
        note("mpi4py")
        from mpi4py import MPI

        MPI.Init_thread(MPI.THREAD_MULTIPLE)  # what the import would have asked for
        note("MPI_Init")
        _listen()
        return ranks

    world.start_world = start_world
    status = esgd(words)
    _write(folder)
    return status


def _listen() -> None:
    """Note each moment at which the program says something new of itself."""
    from esgd_hpc import pulse

    doing, waiting = pulse.doing, pulse.waiting

    def noted(what: str) -> None:
        note(what)
        doing(what)

    @contextmanager
    def noted_waiting(what: str):
        note(what)
        with waiting(what):
            yield
        note(f"after {what}")

    pulse.doing, pulse.waiting = noted, noted_waiting


def _hear(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str) and opened is not None:
        opened.add(arguments[0])


def _mapped() -> set[str]:
    with open("/proc/self/maps") as maps:
        return {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}


def _size(path: str) -> int:
    import os

    try:
        return os.stat(path).st_size
    except OSError:  # looked for in vain, or gone
        return 0


def _bytes_read() -> int:
    with open("/proc/self/io") as told:
        return int(told.readline().split()[1])


def _write(folder: str) -> None:
    import json
    import os
    from pathlib import Path

    from esgd_hpc.launch import launched_rank

    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    moments["process"] = {"seconds": int(started) / os.sysconf("SC_CLK_TCK")}
    found = {"rank": launched_rank() or 0, "moments": moments}
    Path(folder, f"{os.getpid()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
