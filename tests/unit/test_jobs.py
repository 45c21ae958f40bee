"""Job scripts: what `esgd jobs render` makes of a recipe and flags, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from esgd_hpc.cli import main
from esgd_hpc.jobs.folder import SCHEDULERS, jobs_folder, site_names, template_names

ROOT = Path(__file__).parents[2]
TEMPLATES = ("array", "chain", "groups", "interactive", "many-nodes", "single-node")

RECORD = f"""\
#!{sys.executable}
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
"""


def rendered(capsys: pytest.CaptureFixture[str], *flags: str, recipe: str = "digits") -> str:
    defaults = {"--scheduler": "slurm", "--gpus-per-node": "2", "--time": "01:00:00"}
    given = [word for key, value in defaults.items() if key not in flags for word in (key, value)]
    assert main(["jobs", "render", recipe, *given, *flags]) == 0
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out


def error_of(capsys: pytest.CaptureFixture[str], *flags: str, recipe: str = "digits") -> str:
    defaults = {"--scheduler": "slurm", "--gpus-per-node": "2", "--time": "01:00:00"}
    given = [word for key, value in defaults.items() if key not in flags for word in (key, value)]
    assert main(["jobs", "render", recipe, *given, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if "note:" not in line]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("esgd: error: ")
    return lines[0]


def flags_for(template: str) -> list[str]:
    return ["--template", template, *(["--seeds", "1-4"] if template == "array" else [])]


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder at the front of PATH, for commands that schedulers have."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_JOB_END_TIME", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    stand_in(folder, "squeue", "#!/bin/sh\necho 2036-01-02T03:04:05\n")
    return folder


def stand_in(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)


def recorded(tmp_path: Path) -> list[list[str]]:
    return [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_there_is_a_script_for_each_purpose(scheduler: str) -> None:
    assert template_names(scheduler) == list(TEMPLATES)
    table = (ROOT / "jobs" / "README.md").read_text()
    for name in [*(f"{t}.sh" for t in TEMPLATES), *(f"{s}.sh" for s in site_names())]:
        assert f"`{name}`" in table, name


def test_scripts_that_may_be_copied_by_hand_do_the_same_below_the_lines() -> None:
    """One correction must not be forgotten in another script."""
    for scheduler in SCHEDULERS:
        ends = {
            name: (jobs_folder() / scheduler / f"{name}.sh").read_text().rpartition("\n# -----")[2]
            for name in ("array", "groups", "many-nodes", "single-node")
        }
        assert len(set(ends.values())) == 1


def test_wheel_ships_every_file_of_jobs() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "data-files"
    ]
    shipped = {file for globs in patterns.values() for glob in globs for file in ROOT.glob(glob)}
    assert shipped == {file for file in (ROOT / "jobs").rglob("*") if file.is_file()}
    assert all(
        folder == f"share/esgd-hpc/{Path(glob).parent.as_posix()}"
        for folder, globs in patterns.items()
        for glob in globs
    )


def test_rendered_scripts_are_clean_and_need_no_other_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = []
    cases = [(s, t, "generic") for s in SCHEDULERS for t in TEMPLATES]
    cases += [("slurm", "groups", site) for site in ("frontier", "juwels", "lumi", "perlmutter")]
    cases += [("lsf", "groups", "summit")]
    for scheduler, template, site in cases:
        flags = ["--scheduler", scheduler, "--site", site, *flags_for(template)]
        script = rendered(capsys, *flags)
        assert "$JOBS" not in script
        assert "$SITE" not in script
        files.append(tmp_path / f"{scheduler}-{template}-{site}.sh")
        files[-1].write_text(script)
    program = shutil.which("shellcheck") or "bash"
    words = [program] if program != "bash" else [program, "-n"]
    found = subprocess.run([*words, *map(str, files)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_rendering_loads_no_slow_library() -> None:
    code = (
        "import sys; from esgd_hpc.cli import main; main(sys.argv[1:]);"
        "sys.exit(bool({'torch', 'mpi4py', 'h5py'} & sys.modules.keys()))"
    )
    words = ["jobs", "render", "digits", "--scheduler", "slurm", "--gpus-per-node", "2"]
    words += ["--time", "01:00:00"]
    found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False)
    assert found.returncode == 0


# ---------------------------------------------------------------- what is filled in


def directives(script: str, mark: str) -> list[str]:
    lines = [line for line in script.splitlines() if line.startswith(f"#{mark} ")]
    return [line.removeprefix(f"#{mark} ").partition("  ")[0] for line in lines]


def test_slurm_directives_are_those_of_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    script = rendered(
        capsys,
        *("--nodes", "2", "--gpus-per-node", "4", "--cores-per-rank", "7", "--account", "abc_g"),
        *("--partition", "gpu", "--time", "02:30:00", "--output", "runs/mine", "--mpi", "pmi2"),
        *("--environment", ""),
    )
    assert directives(script, "SBATCH") == [
        "--job-name=esgd-mine",
        "--account=abc_g",
        "--partition=gpu",
        "--time=02:30:00",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=7",
        "--gpus-per-node=4",
        "--output=%x-%j.log",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@300",
    ]
    assert "\nMPI=pmi2 " in script
    assert "\nENVIRONMENT= " in script


def test_without_gpus_none_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    script = rendered(capsys, "--gpus-per-node", "0", "--ranks-per-node", "4")
    assert "--ntasks-per-node=4" in directives(script, "SBATCH")
    assert not [d for d in directives(script, "SBATCH") if "gpu" in d]
    script = rendered(capsys, "--gpus-per-node", "0", "--ranks-per-node", "4", "--scheduler", "lsf")
    assert not [d for d in directives(script, "BSUB") if "gpu" in d]
    assert "\nGPUS_PER_RANK=0 " in script


def test_a_site_adds_what_it_needs_and_flags_come_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = rendered(
        capsys, "--site", "perlmutter", "--gpus-per-node", "2", "--cores-per-rank", "16"
    )
    found = directives(script, "SBATCH")
    assert {"--constraint=gpu", "--qos=regular", "--gpus-per-node=2"} <= set(found)
    assert "--cpus-per-task=16" in found
    assert len({d.partition("=")[0] for d in found}) == len(found)
    assert "--gpu-bind=none" in script


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], "single-node"),
        (["--nodes", "2"], "many-nodes"),
        (["--nodes", "2", "--ranks-per-group", "2"], "groups"),
        (["--seeds", "1,3-4"], "array"),
    ],
)
def test_the_template_that_fits_is_taken(
    capsys: pytest.CaptureFixture[str], flags: list[str], wanted: str
) -> None:
    words = ["--scheduler", "slurm", "--gpus-per-node", "2", "--time", "01:00:00", *flags]
    assert main(["jobs", "render", "digits", *words]) == 0
    assert capsys.readouterr().err.startswith(f"esgd: {wanted} for slurm")


def test_without_jsrun_lsf_is_asked_for_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    script = rendered(
        capsys, "--scheduler", "lsf", "--seeds", "1-8%2", "--nodes", "2", "--queue", "gpu"
    )
    found = directives(script, "BSUB")
    assert '-J "esgd-digits[1-8]%2"' in found
    assert {"-n 4", '-gpu "num=2:j_exclusive=yes"', "-q gpu", "-W 1:00"} <= set(found)
    assert '-R "span[ptile=2] affinity[core(2)]"' in found
    assert not [d for d in found if d.startswith("-nnodes")]


def test_memory_is_checked_where_it_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "large.toml"
    recipe.write_text(
        'task = "digits"\n[task_options]\nhidden = 20000\n[population]\nparents = 512\n'
        '[[sgd.optimizers]]\nname = "sgd"\nlearning_rate = 0.1\n'
    )
    assert "--memory-per-node 4: a node needs" in error_of(
        capsys, "--memory-per-node", "4", recipe=str(recipe)
    )
    assert "--mem=64G" in rendered(capsys, "--memory-per-node", "64", recipe=str(recipe))


def test_where_data_lies_goes_into_the_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESGD_DATA", "/scratch/my data/$(x)")
    assert "\nexport ESGD_DATA='/scratch/my data/$(x)'\n" in rendered(capsys)
    monkeypatch.delenv("ESGD_DATA")
    assert "ESGD_DATA" not in rendered(capsys)


def test_a_site_may_name_its_kind_of_gpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site = tmp_path / "mine.sh"
    for gpus, told in (("a100:4", "--ntasks-per-node=4"), ("four", "gpus-per-node = four")):
        site.write_text(f"#SBATCH --gpus-per-node={gpus}\nSRUN_OPTIONS=()\nESGD=(esgd)\n")
        words = ["--scheduler", "slurm", "--time", "01:00:00", "--site", str(site)]
        assert main(["jobs", "render", "digits", *words]) == (0 if gpus != "four" else 2)
        captured = capsys.readouterr()
        assert told in captured.out + captured.err


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nodes", "0"], "--nodes 0: expected a number of at least 1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node -1"),
        (["--gpus-per-node", "0"], "--ranks-per-node"),
        (["--ranks-per-node", "4"], "ranks would share GPUs"),
        (["--ranks-per-group", "3"], "not a multiple of 3 ranks a group"),
        (["--nodes", "9"], "10 of the groups would idle; use at most 8 ranks, or --ranks-per-gr"),
        (["--nodes", "9"], "--ranks-per-group 3"),
        (["--set", 'method="single"', "--set", "single.learning_rate=0.1"], "1 of the groups"),
        (["--time", "4:00"], "--time"),
        (["--time", "00:00:30"], "at least a minute"),
        (["--template", "nonesuch"], "--template nonesuch: one of array"),
        (["--template", "array"], "--template array needs --seeds"),
        (["--template", "chain", "--seeds", "1-2"], "--seeds"),
        (["--seeds", "8-1"], "8-1 goes down"),
        (["--seeds", "1-"], "--seeds"),
        (["--seeds", "0-3", "--scheduler", "lsf"], "begin at 1"),
        (["--seeds", "1-3", "--set", "seed=4"], "--set seed and --seeds"),
        (["--template", "many-nodes", "--ranks-per-group", "2"], "use --template groups"),
        (["--cores-per-rank", "1", "--set", "topology.threads_per_rank=2"], "threads_per_rank = 2"),
        (["--site", "nonesuch"], "--site nonesuch: one of frontier"),
        (["--site", "./nonesuch.sh"], "no such file"),
        (["--site", "summit"], "it has lsf, not --scheduler slurm"),
        (["--mpi", "pmix", "--scheduler", "lsf"], "jsrun or mpirun"),
        (["--set", "generation=3"], "did you mean generations?"),
        (["--memory-per-node", "0"], "--memory-per-node 0"),
        *(
            ([flag, value], flag)
            for flag in ("--account", "--partition", "--name", "--mpi")
            for value in ("a b", "a;touch x", "$(touch x)", "a\n#SBATCH --wrap=x", "`x`", "a'b")
        ),
        *(
            ([flag, f"{value}\n#BSUB -q other"], f"{flag} ")
            for flag, value in (("--output", "x"), ("--environment", "x"), ("--set", "seed=1"))
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert said in error_of(capsys, *flags)


def test_several_ranks_share_a_gpu_where_the_recipe_lets_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = rendered(capsys, "--ranks-per-node", "4", "--set", "topology.share_gpus=true")
    assert "--ntasks-per-node=4" in directives(script, "SBATCH")


# ---------------------------------------------------------------- what a script does


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_value_runs_anything(
    scheduler: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    stand_ins: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The launcher gets what was asked for, as it is."""
    hostile = """a b'c"d;touch pwned #$(touch pwned)`touch pwned`\\ &*"""
    monkeypatch.chdir(tmp_path)
    recipe = Path(f"{hostile}.toml")
    recipe.write_text(TINY)
    environment = Path(f"env {hostile}")
    environment.write_text("export FROM_ENVIRONMENT=yes\n")
    setting = f"task_options.hidden=4 # {hostile}"
    script = rendered(
        capsys,
        *("--scheduler", scheduler, "--site", "summit" if scheduler == "lsf" else "generic"),
        *("--output", f"runs/{hostile}", "--environment", str(environment), "--set", setting),
        recipe=str(recipe),
    )
    launcher = "srun" if scheduler == "slurm" else "jsrun"
    stand_in(stand_ins, launcher, RECORD)
    if scheduler == "lsf":
        monkeypatch.setenv("LSB_JOBID", "7")
    found = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    (words,) = recorded(tmp_path)
    place = words.index("esgd")
    assert words[place:] == [
        *("esgd", "run", str(recipe), "--output", f"runs/{hostile}", "--set", setting)
    ]
    assert not list(tmp_path.rglob("pwned*"))


TINY = """\
task = "digits"
[population]
parents = 4
[[sgd.optimizers]]
name = "sgd"
learning_rate = 0.1
"""


def run_slurm(
    capsys: pytest.CaptureFixture[str], folder: Path, srun: str, *flags: str
) -> "subprocess.CompletedProcess[str]":
    """Run a rendered script with stand-ins for srun and a scontrol that refuses."""
    stand_in(folder, "srun", f"#!/bin/bash\n{srun}\n")
    stand_in(folder, "scontrol", '#!/bin/bash\necho "scontrol $*"\nexit 1\n')
    script = rendered(capsys, "--environment", "", *flags)
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_the_runs_status_is_the_jobs(
    capsys: pytest.CaptureFixture[str], stand_ins: Path, status: int
) -> None:
    found = run_slurm(capsys, stand_ins, f"exit {status}")
    assert found.returncode == status
    assert "scontrol" not in found.stdout


def test_status_99_requeues_the_task_of_an_array_alone(
    capsys: pytest.CaptureFixture[str], stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    found = run_slurm(capsys, stand_ins, 'echo "$ESGD_JOB $*"; exit 99', "--seeds", "1-3")
    assert found.returncode == 99  # scontrol has refused
    assert "slurm-7_3 --mpi=pmix" in found.stdout
    assert found.stdout.split("--output ")[1].startswith("runs/digits/seed-3 ")
    assert "--set seed=3" in found.stdout
    assert "scontrol requeue 7_3" in found.stdout


def test_a_signal_is_passed_on_and_the_launcher_waited_for(
    capsys: pytest.CaptureFixture[str], stand_ins: Path
) -> None:
    srun = """trap "echo passed on; exit 99" USR1
    kill -USR1 "$PPID"
    for i in {1..100}; do sleep 0.05; done"""
    found = run_slurm(capsys, stand_ins, srun)
    assert "passed on" in found.stdout
    assert found.returncode == 99
    assert "scontrol requeue 7" in found.stdout


def test_a_cancelled_job_does_not_come_back(
    capsys: pytest.CaptureFixture[str], stand_ins: Path
) -> None:
    found = run_slurm(capsys, stand_ins, 'kill -TERM "$PPID"; sleep 0.2; exit 99')
    assert found.returncode == 143
    assert "scontrol" not in found.stdout
    assert "cancelled" in found.stdout


def test_the_end_of_the_job_and_the_threads_are_told(
    capsys: pytest.CaptureFixture[str], stand_ins: Path
) -> None:
    told = 'echo "end $ESGD_END_TIME threads $OMP_NUM_THREADS cpus $SRUN_CPUS_PER_TASK"'
    found = run_slurm(
        capsys, stand_ins, told, "--set", "topology.threads_per_rank=3", "--cores-per-rank", "4"
    )
    assert "threads 3" in found.stdout
    (end,) = [line.split()[1] for line in found.stdout.splitlines() if line.startswith("end ")]
    assert abs(int(end) - 2082855845) < 15 * 3600  # in any time zone


# ---------------------------------------------------------------- submitting


def test_submit_keeps_the_script_and_prints_the_number(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    stand_ins: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(stand_ins, "sbatch", RECORD + 'print("Submitted batch job 12")\n')
    words = ["--scheduler", "slurm", "--gpus-per-node", "2", "--time", "01:00:00"]
    assert main(["jobs", "submit", "digits", *words, "--template", "chain", "--links", "2"]) == 0
    assert capsys.readouterr().out == "Submitted batch job 12\n" * 2
    assert recorded(tmp_path) == [[str(stand_ins / "sbatch"), "runs/digits/job.sh"]] * 2
    assert main(["jobs", "render", "digits", *words, "--template", "chain"]) == 0
    script = Path("runs/digits/job.sh").read_text()
    assert capsys.readouterr().out == script
    # Another job does not take the place of the script beside a run.
    assert main(["jobs", "submit", "digits", *words, "--set", "seed=2"]) == 2
    assert "`sbatch runs/digits/job.sh`, name another --output" in capsys.readouterr().err
    assert Path("runs/digits/job.sh").read_text() == script


def test_a_refused_job_is_told(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    stand_ins: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(stand_ins, "sbatch", "#!/bin/sh\necho 'sbatch: error: no such account' >&2\nexit 1\n")
    words = ["--scheduler", "slurm", "--gpus-per-node", "2", "--time", "01:00:00"]
    assert main(["jobs", "submit", "digits", *words]) == 1
    assert "sbatch refused the job (status 1): sbatch: error: no such account" in (
        capsys.readouterr().err
    )
    assert main(["jobs", "submit", "digits", *words, "--template", "interactive"]) == 2
    monkeypatch.setenv("PATH", "/nonesuch")
    assert main(["jobs", "submit", "digits", *words]) == 2
    assert "sbatch is not found here" in capsys.readouterr().err


def test_list_has_a_line_for_each_template_and_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "list"]) == 0
    out = capsys.readouterr().out
    for name in [*TEMPLATES, *site_names()]:
        assert f"\n  {name} " in out
    assert main(["jobs", "path"]) == 0
    assert Path(capsys.readouterr().out.strip(), "sites", "generic.sh").is_file()
