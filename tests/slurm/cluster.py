"""A real Slurm cluster of virtual nodes on this machine, for as long as the tests run.

Controller and nodes are processes in namespaces of their own: each node has its own host name,
process numbers and shared memory, as Open MPI and PMIx expect of different machines. Who ends the
first process of a namespace ends all in it, so a node is lost by killing one process, and nothing
is left behind however the tests end.
"""

import ctypes
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

NODES = ("n1", "n2")
CPUS = 8
GPUS = 2
"""What each node claims to have: the CPUs are shared, and the GPUs are null devices."""
SECONDS_TO_START = 30
SECONDS_TO_ANSWER = 30
SECONDS_TO_END = 60
LINES_TO_TELL = 12
LONGEST_PATH = 40
"""Of the cluster's folder: the paths of sockets in it are limited to 107 characters."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "setpriv", "unshare")
NAMESPACES = ("--uts", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL")

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=head(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for as long as a credential lives.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
# PMIx keeps its sockets here, under names that are the same on each node.
TmpFS={folder}/%n/tmp
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
MailProg=/bin/true
# No cgroups, no accounts.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
# More CPUs than there are.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
# A lost node is noticed soon, and is welcome when it is back.
SlurmdTimeout=10
ReturnToService=2
KillWait=5
JobRequeue=1
EnforcePartLimits=ALL
{settings}
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
GresTypes=gpu
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1"
    " CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN"
)

START_CONTROLLER = """
hostname head
mount --bind "$1/hosts" /etc/hosts
exec slurmctld -D -f "$1/slurm.conf"
"""
# The shell stays: as the first process of its namespace it takes leave of the orphans in it.
START_NODE = """
hostname "$2"
mount --bind "$1/hosts" /etc/hosts
mount -t tmpfs -o size=2g shm /dev/shm
mount --bind "$1/$2/tmp" "$1/tmp"
slurmd -D -N "$2" -f "$1/slurm.conf" &
wait
"""


def reason_to_skip() -> str:
    """Return why no cluster can be started here, or an empty text."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found (Debian: slurm-wlm, munge)"
    try:
        ctypes.CDLL("libpmix.so")
    except OSError:
        return "libpmix.so not found, which srun --mpi=pmix loads (Debian: libpmix-dev)"
    if os.geteuid() != 0:
        return "a Slurm cluster of virtual nodes needs root"
    tried = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Cluster:
    """A controller and the nodes; `close` ends them and all that runs on them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` is all that jobs find beside what Slurm itself sets."""
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))
        self.environment = {
            **environment,
            "SLURM_CONF": f"{self.folder}/slurm.conf",
            "TMPDIR": f"{self.folder}/tmp",  # each node has its own there
        }
        self._ports = _free_ports(1 + len(NODES))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # Starting and ending it.

    def start(self) -> None:
        """Start everything and wait until all nodes are ready."""
        assert len(str(self.folder)) <= LONGEST_PATH, f"{self.folder}: too long for sockets"
        self._write_files()
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "seed", "log")]
        files += [f"--pid-file={self.folder}/munged.pid", f"--socket={self.folder}/munge.sock"]
        self._start("munged", "munged", "--foreground", *files)
        self.wait_until(
            (self.folder / "munge.sock").exists, "munged has a socket", SECONDS_TO_START
        )
        self._start("head", *_in_namespaces(START_CONTROLLER, self.folder))
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def _write_files(self) -> None:
        self.folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        folders = [self.folder / name for name in ("state", "tmp", "dev")]
        for folder in [*folders, *(f for node in NODES for f in self._folders_of(node))]:
            folder.mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost head {' '.join(NODES)}\n")
        for number in range(GPUS):
            device = self.folder / f"dev/nvidia{number}"
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        devices = f"{self.folder}/dev/nvidia[0-{GPUS - 1}]"
        (self.folder / "gres.conf").write_text(f"Name=gpu File={devices} Flags=nvidia_gpu_env\n")
        self._write_configuration("")

    def _write_configuration(self, settings: str) -> None:
        nodes = [
            NODE.format(name=name, port=port, cpus=CPUS, gpus=GPUS)
            for name, port in zip(NODES, self._ports[1:], strict=True)
        ]
        text = CONFIGURATION.format(
            folder=self.folder,
            controller_port=self._ports[0],
            nodes="\n".join(nodes),
            settings=settings,
        )
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, name: str, *command: str) -> None:
        """Start a daemon that the kernel ends when this process ends, however it does."""
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
            )

    def _folders_of(self, node: str) -> list[Path]:
        return [self.folder / node / name for name in ("spool", "tmp")]

    def start_node(self, node: str) -> None:
        """Start a node, for the first time or again."""
        self._start(node, *_in_namespaces(START_NODE, self.folder, node))

    def lose_node(self, node: str) -> None:
        """End all that runs on a node at once; its disk is lost as well.

        Slurm 22.05 leaves sockets there that would be in the way when the same job comes again.
        """
        _end(self._daemons.pop(node))
        for folder in self._folders_of(node):
            shutil.rmtree(folder)
            folder.mkdir()

    def wait_for_nodes(self) -> None:
        """Wait until all nodes take jobs."""
        self.wait_until(
            lambda: (
                {*self.run("sinfo", "-hNo", "%T", attempts=5).split()}
                <= {"idle", "mixed", "allocated"}
            ),
            "all nodes are there",
            SECONDS_TO_START,
        )

    def set(self, settings: str) -> None:
        """Put a line into the configuration, as an administrator would."""
        self._write_configuration(settings)
        self.run("scontrol", "reconfigure")

    def close(self) -> None:
        """End all daemons and all jobs, and remove the folder."""
        for process in reversed(self._daemons.values()):
            _end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    # Using it.

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
        attempts: int = 1,
    ) -> str:
        """Run a command of Slurm's, or one that calls them, and return what it prints.

        More attempts are for those that only ask: a busy controller may let them down.
        """
        __tracebackhide__ = True
        for _ in range(attempts):
            done = subprocess.run(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env={**self.environment, **(variables or {})},
                cwd=cwd,
                timeout=SECONDS_TO_ANSWER,
            )
            if done.returncode == 0:
                return done.stdout
        pytest.fail(f"{done.args}: status {done.returncode}\n{done.stderr}{self.tell()}")

    def submit(
        self, script: Path, *options: str, cwd: Path, variables: Mapping[str, str] | None = None
    ) -> "Job":
        """Submit a job script from a folder, with variables that the job will have."""
        __tracebackhide__ = True
        number = self.run(
            "sbatch", "--parsable", *options, script, cwd=cwd, variables=variables
        ).strip()
        return Job(self, number)

    def wait_until(self, happens: Callable[[], bool], what: str, seconds: float) -> None:
        """Fail the test, with all that the cluster can tell, where something does not happen."""
        __tracebackhide__ = True
        deadline = time.monotonic() + seconds
        while not happens():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:g} seconds: {what}{self.tell()}")
            time.sleep(0.2)

    def tell(self) -> str:
        """Return the ends of all logs, and the queue, for the message of a failed test."""
        told = []
        for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("*/*.log")]):
            lines = path.read_text(errors="replace").splitlines()[-LINES_TO_TELL:]
            told += [f"---- {path.name} ----", *lines]
        with suppress(OSError, subprocess.SubprocessError):
            queue = ["squeue", "--all"]
            shown = subprocess.run(
                queue, capture_output=True, text=True, env=self.environment, timeout=5
            )
            told += ["---- squeue ----", shown.stdout + shown.stderr]
        return "\n" + "\n".join(told)


class Job:
    """A job that was submitted."""

    def __init__(self, cluster: Cluster, number: str) -> None:
        self._cluster, self.number = cluster, number

    def __getitem__(self, field: str) -> str:
        """Return what `scontrol show job` says of it, such as JobState or Restarts."""
        show = ("scontrol", "show", "job", "--oneliner", self.number)
        shown = self._cluster.run(*show, attempts=5)
        found = re.search(rf"(?:^|\s){field}=(\S*)", shown)
        assert found, f"no {field} in {shown}"
        return found[1]

    def log(self) -> str:
        """Return what it has written until now."""
        path = Path(self["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def status(self) -> int:
        """Return the exit status of its script."""
        return int(self["ExitCode"].partition(":")[0])

    def wait_until(self, happens: Callable[[], bool], what: str, seconds: float) -> None:
        """Fail the test, with its log, where something does not happen."""
        __tracebackhide__ = True
        try:
            self._cluster.wait_until(happens, f"job {self.number}: {what}", seconds)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure}{self._told()}")

    def wait_for(self, state: str, seconds: float) -> None:
        """Wait until it is in a state, such as COMPLETED; fail where it ends in another."""
        __tracebackhide__ = True
        ended = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT")
        self.wait_until(lambda: self["JobState"] in (state, *ended), f"it is {state}", seconds)
        reached = self["JobState"]
        if reached != state:
            told = self._cluster.tell()
            pytest.fail(f"job {self.number} is {reached}, not {state}{told}{self._told()}")

    def _told(self) -> str:
        return f"\n---- log of job {self.number} ----\n{self.log()}"

    def wait_until_it_says(self, text: str, times: int, seconds: float) -> None:
        """Wait until something is so many times in its log."""
        __tracebackhide__ = True
        self.wait_until(lambda: self.log().count(text) >= times, f"it says {text!r}", seconds)

    def processes(self) -> dict[int, dict[str, str]]:
        """Return what runs of it: numbers of processes, as seen from here, and their variables."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                text = (folder / "environ").read_text(errors="replace")
            except OSError:  # it has ended
                continue
            variables = dict(word.partition("=")[::2] for word in text.split("\0") if word)
            if variables.get("SLURM_JOB_ID") == self.number:
                found[int(folder.name)] = variables
        return found


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at, below those that the kernel gives to clients."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with ExitStack() as opened:
        ports: list[int] = []
        while len(ports) < count:
            listener = opened.enter_context(socket.socket())
            port = random.randrange(low // 2, low)
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


def _in_namespaces(script: str, *arguments: str | Path) -> list[str]:
    return ["unshare", *NAMESPACES, "sh", "-ec", script, "sh", *map(str, arguments)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a daemon: the first process of its namespace, and with it all others, or itself."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in map(int, children) if children else [process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(SECONDS_TO_END)
