"""The LSF scripts, against stand-ins for bsub, jsrun and mpirun: no machine with LSF is at hand.

The stand-ins take only the directives and arguments that LSF's documentation has, with the values
that belong together, and do what it says of them: bsub runs the script, again after the exit
statuses of -Q, and puts its output into the file of -o.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from esgd_hpc.cli import main

if TYPE_CHECKING:
    from conftest import Launch

BSUB = f"""\
#!{sys.executable}
import json, os, re, shlex, signal, subprocess, sys, time
from pathlib import Path

TAKES = dict.fromkeys("-J -P -W -nnodes -n -R -gpu -o -Q -wt -wa -q -alloc_flags -w".split(), 1)
TAKES |= {{"-r": 0, "-Is": 0}}

def options(words):
    found = {{}}
    while words and words[0].startswith("-"):
        key = words.pop(0)
        if key not in TAKES or key in found:
            sys.exit(f"bsub: {{key}}: unknown, or twice")
        found[key] = words.pop(0) if TAKES[key] else True
    return found, words

def check(asked):
    if not re.fullmatch(r"\\d+:[0-5]\\d", asked["-W"]):
        sys.exit("bsub: -W")
    if ("-wt" in asked) != ("-wa" in asked):
        sys.exit("bsub: -wt and -wa belong together")
    if ("-nnodes" in asked) == ("-n" in asked):
        sys.exit("bsub: one of -nnodes and -n")
    if "-n" in asked:
        host = re.fullmatch(r"span\\[ptile=(\\d+)\\] affinity\\[core\\(\\d+\\)\\]", asked["-R"])
        if not host or int(asked["-n"]) % int(host[1]):
            sys.exit("bsub: -R")
    if "-gpu" in asked and not re.fullmatch(r"num=\\d+:j_exclusive=yes", asked["-gpu"]):
        sys.exit("bsub: -gpu")

asked, command = options(sys.argv[1:])
script = "" if command else sys.stdin.read()
if script and not script.startswith("#!/bin/bash\\n"):
    sys.exit("bsub: the first line must name the shell")
for line in script.splitlines():
    if line.startswith("#BSUB"):
        more, rest = options(shlex.split(line.removeprefix("#BSUB")))
        if rest or more.keys() & asked.keys():
            sys.exit(f"bsub: {{line}}")
        asked |= more
check(asked)
folder = Path(os.environ["STAND_INS"])
number = 701 + len(list(folder.glob("bsub-*")))
(folder / f"bsub-{{number}}").write_text(json.dumps(asked))
(folder / "hosts").write_text("".join(f"host\\n" for _ in range(int(asked.get("-n", 0)))))
array = re.fullmatch(r".*\\[(\\d+)-(\\d+)\\](%\\d+)?", asked["-J"])
again = asked.get("-Q", "").split()
for index in range(int(array[1]), int(array[2]) + 1) if array else [0]:
    environment = os.environ | {{
        "LSB_JOBID": str(number), "LSB_JOBINDEX": str(index), "STAND_IN_ASKED": json.dumps(asked),
        "LSB_DJOB_HOSTFILE": str(folder / "hosts"),
    }}
    if command:
        sys.exit(subprocess.run(command, env=environment).returncode)
    log = asked["-o"].replace("%J", str(number)).replace("%I", str(index))
    for start in range(3):
        with open(log, "a") as output:
            job = subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=output,
                stderr=output, env=environment, text=True)
            job.stdin.write(script)
            job.stdin.close()
            watched = os.environ.get("WARN_WHEN_THERE_IS")
            while start == 0 and watched and job.poll() is None:
                if Path(watched).exists():
                    job.send_signal(getattr(signal, f"SIG{{asked['-wa']}}"))
                    break
                time.sleep(0.02)
            status = job.wait()
        with open(folder / f"status-{{number}}", "a") as file:
            file.write(f"{{status}}\\n")
        if str(status) not in again:
            break
print(f"Job <{{number}}> is submitted to queue <normal>.")
"""

JSRUN = f"""\
#!{sys.executable}
import json, os, sys
words = sys.argv[1:]
asked = json.loads(os.environ["STAND_IN_ASKED"])
keys, values = words[0:16:2], words[1:16:2]
if keys != ["-n", "-r", "-a", "-c", "-g", "-b", "-d", words[14]]:
    sys.exit(f"jsrun: {{words}}")
given = dict(zip(keys[:7], values[:7]))
sets, on_host = int(given["-n"]), int(given["-r"])
if sets != on_host * int(asked["-nnodes"]) or given["-a"] != "1" or int(given["-c"]) < 1:
    sys.exit(f"jsrun: {{words}}")
if given["-g"] not in ("0", "1") or given["-b"] != "rs" or given["-d"] != "packed":
    sys.exit(f"jsrun: {{words}}")
with open(os.environ["STAND_INS"] + "/launched", "a") as file:
    file.write(json.dumps([os.environ.get("ESGD_JOB"), *words]) + "\\n")
if "FOR_REAL" in os.environ:
    mpiexec = os.environ.get("ESGD_MPIEXEC", "mpiexec")
    os.execvp(mpiexec, [mpiexec, "-n", given["-n"], *words[14:]])
sys.exit(int(os.environ.get("STATUS", "0")))
"""

MPIRUN = f"""\
#!{sys.executable}
import json, os, sys
words = sys.argv[1:]
asked = json.loads(os.environ["STAND_IN_ASKED"])
if words[0] != "-n" or words[2] != "--hostfile" or words[4:6] != ["--bind-to", "none"]:
    sys.exit(f"mpirun: {{words}}")
if words[1] != asked["-n"] or len(open(words[3]).readlines()) != int(words[1]):
    sys.exit("mpirun: the ranks are not those of the job")
with open(os.environ["STAND_INS"] + "/launched", "a") as file:
    file.write(json.dumps([os.environ.get("ESGD_JOB"), *words]) + "\\n")
"""


@pytest.fixture
def lsf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which the stand-ins leave what they were asked for."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("bsub", BSUB), ("jsrun", JSRUN), ("mpirun", MPIRUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_INS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*flags: str) -> int:
    words = ["--scheduler", "lsf", "--environment", "", "--time", "00:50:00", *flags]
    return main(["jobs", "submit", "digits", *words])


def asked(folder: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"bsub-{number}").read_text())
    return found


def launched(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "launched").read_text().splitlines()]


JSRUN_FLAGS = ("--site", "summit", "--nodes", "2", "--gpus-per-node", "2", "--cores-per-rank", "7")


@pytest.mark.parametrize(
    ("flags", "jobs"),
    [
        (("--nodes", "1"), 1),
        ((), 1),
        (("--ranks-per-group", "2"), 1),
        (("--seeds", "1-3"), 3),
        (("--template", "chain"), 1),
    ],
)
def test_directives_and_jsrun_say_the_same(lsf: Path, flags: tuple[str, ...], jobs: int) -> None:
    assert submit(*JSRUN_FLAGS, *flags, "--account", "abc123") == 0
    found = asked(lsf, 701)
    assert (found["-P"], found["-W"], found["-wt"], found["-wa"]) == ("abc123", "0:50", "5", "USR1")
    assert found["-r"] is True
    assert found["-alloc_flags"] == "smt1"
    assert found.get("-Q") == (None if "chain" in flags else "99")
    starts = launched(lsf)
    assert len(starts) == jobs
    for index, (job, *words) in enumerate(starts, start=1):
        assert job == ("lsf-701" if jobs == 1 else f"lsf-701_{index}")
        assert words[2:14] == [*("-r", "2", "-a", "1", "-c", "7"), *words[8:14]]
        assert words[8:17] == [*("-g", "1", "-b", "rs", "-d", "packed"), "esgd", "run", "digits"]
        assert words[18] == ("runs/digits" if jobs == 1 else f"runs/digits/seed-{index}")


def test_without_jsrun_mpirun_gets_the_jobs_hosts(lsf: Path) -> None:
    assert submit("--nodes", "2", "--gpus-per-node", "4", "--queue", "gpu") == 0
    found = asked(lsf, 701)
    assert (found["-n"], found["-gpu"], found["-q"]) == ("8", "num=4:j_exclusive=yes", "gpu")
    ((_, *words),) = launched(lsf)
    assert words[6:] == ["esgd", "run", "digits", "--output", "runs/digits"]


def test_links_of_a_chain_wait_for_each_other(
    lsf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STATUS", "99")
    assert submit(*JSRUN_FLAGS, "--template", "chain", "--links", "3") == 0
    assert [asked(lsf, n).get("-w") for n in (701, 702, 703)] == [None, "ended(701)", "ended(702)"]
    assert len(launched(lsf)) == 3  # none has started itself again
    assert capsys.readouterr().out.count("is submitted") == 3


@pytest.mark.parametrize(("status", "starts"), [(99, 3), (1, 1)])
def test_only_a_run_that_stopped_early_starts_again(
    lsf: Path, monkeypatch: pytest.MonkeyPatch, status: int, starts: int
) -> None:
    monkeypatch.setenv("STATUS", str(status))
    assert submit(*JSRUN_FLAGS) == 0
    assert (lsf / "status-701").read_text().split() == [str(status)] * starts


def test_interactive_asks_for_a_job_and_checks_it_first(
    lsf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--scheduler", "lsf", "--environment", "", "--time", "00:30:00", *JSRUN_FLAGS]
    words += ["--template", "interactive", "--file", "try.sh"]
    assert main(["jobs", "render", "digits", *words]) == 0
    done = subprocess.run(["bash", "try.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert asked(lsf, 701)["-Is"] is True
    assert [words[16] for words in launched(lsf)] == ["check", "run"]
    assert {words[0] for words in launched(lsf)} == {None}


def test_a_run_is_warned_stops_and_goes_on(
    lsf: Path, monkeypatch: pytest.MonkeyPatch, launch: "Launch"
) -> None:
    """With the real run: SIGUSR1, status 99, started again by -Q, done."""
    monkeypatch.setenv("FOR_REAL", "yes")
    monkeypatch.setenv("WARN_WHEN_THERE_IS", "runs/digits/latest")
    generations = 8
    flags = ["--gpus-per-node", "0", "--ranks-per-node", "2", "--site", "summit"]
    settings = ["--set", f"generations={generations}", "--set", "task_options.hidden=4"]
    words = ["--scheduler", "lsf", "--environment", "", "--time", "00:50:00", *flags, *settings]
    done = launch(0, "jobs", "submit", "digits", *words, cwd=lsf)
    assert done.returncode == 0, done.stderr
    log = (lsf / "esgd-digits.701.log").read_text()
    assert (lsf / "status-701").read_text().split() == ["99", "0"], log
    assert "near its end, the run is asked to stop" in log
    assert re.search(r"stopped (in|at).* generation", log)
    assert (lsf / "runs/digits/latest").resolve().name == f"gen_{generations:06}"
