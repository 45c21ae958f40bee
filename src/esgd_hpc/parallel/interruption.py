"""How all ranks stop together, soon, where one was asked to: at an epoch or a child.

Groups work for long without contact, so the news has to travel: whoever is asked to stop tells rank
0, which tells all leaders. A leader looks for news at each safe point, and there its group decides
as one. Groups that are done wait in `meet`, where news travels on, until all are there.

Time that runs out needs no news: each group stops before what would last too long for it, and those
with shorter work go on.
"""

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from esgd_hpc import pulse
from esgd_hpc.parallel.topology import Topology

_SECONDS_BETWEEN_LOOKS = (0.0001, 0.01)
"""How often a group that waits for others looks for them: at first, and after a while."""
_MARGIN = (0.1, 30.0)
"""What is kept of the time that there was at first, as a share of it and in seconds at most."""

_GO_ON, _LATE, _ASKED = range(3)


class Interruption:
    """Whether to stop, as all ranks of a group, and at meetings of the world, agree on it."""

    def __init__(
        self, topology: Topology, asked: Callable[[], bool], seconds: float | None = None
    ) -> None:
        """Take what tells whether this rank was asked, and the seconds until all must have ended.

        The seconds are the same on every rank; None where there is no limit.
        """
        self._topology, self._asked = topology, asked
        self._deadline = None
        if seconds is not None:
            share, most = _MARGIN
            self._deadline = time.monotonic() + seconds - min(share * seconds, most)
        self._needed_at_the_end = 0.0
        self.training = self.scoring = 0.0
        """Seconds that the slowest individual and the slowest child took last."""
        self._known = False
        self._has_told = self._is_settled = False
        self._num_heard = 0
        self._sends: list[MPI.Request] = []

    def expect(self, training: float, scoring: float) -> None:
        """Expect to train an individual, or score a child, in so many seconds at most.

        They are the same on all ranks of a group; what took longer meanwhile counts as well.
        """
        self.training, self.scoring = training, scoring

    def keep_free(self, seconds: float) -> None:
        """Keep so much of the time for what comes after a stop."""
        self._needed_at_the_end = seconds

    def requested(self) -> bool:
        """Whether this rank knows that one was asked to stop. Local."""
        self._known = self._known or self._asked()
        return self._known

    def should_stop(self, needs: float = 0.0) -> bool:
        """Whether the group stops here, at a safe point, before what `needs` so many seconds.

        Collective over the group.
        """
        self._hear()
        verdict = _ASKED if self.requested() else _LATE if self._is_late(needs) else _GO_ON
        if self._topology.group.size > 1:
            verdict = self._topology.group.allreduce(verdict, op=MPI.MAX)
        if verdict == _ASKED:
            self._known = True
            if self._topology.is_leader:
                self._tell()
        return verdict != _GO_ON

    def meet(self, after: str) -> None:
        """Wait for all groups, then know on every rank whether one was asked to stop.

        Collective over the world.
        """
        world = self._topology.world
        with pulse.waiting(f"waiting for other groups after {after}"):
            everyone = world.Ibarrier()
            pause, longest = _SECONDS_BETWEEN_LOOKS
            while not everyone.Test():
                self._hear()
                if self.requested():
                    self._tell()
                time.sleep(pause)
                pause = min(1.2 * pause, longest)
            self._settle()

    def _is_late(self, needs: float) -> bool:
        if self._deadline is None:
            return False
        return time.monotonic() + needs + self._needed_at_the_end > self._deadline

    # News -----------------------------------------------------------------------------------------

    def _hear(self) -> None:
        while self._topology.control.Iprobe():
            self._receive()

    def _receive(self) -> None:
        self._topology.control.Recv(np.empty(0, dtype=np.int8))
        self._num_heard += 1
        self._known = True
        if self._topology.world.rank == 0:
            self._tell()

    def _tell(self) -> None:
        """Pass the news on, once. Who has it from rank 0 need not tell anybody."""
        topology, is_root = self._topology, self._topology.world.rank == 0
        if self._has_told or (self._num_heard and not is_root):
            return
        self._has_told = True
        others = range(topology.ranks_per_group, topology.world.size, topology.ranks_per_group)
        for rank in others if is_root else (0,):
            self._sends.append(topology.control.Isend(np.empty(0, dtype=np.int8), rank))

    def _settle(self) -> None:
        """Tell everybody what is known, and receive what is still on its way."""
        topology, is_root = self._topology, self._topology.world.rank == 0
        sent = bool(self._sends) and not self._is_settled
        mine = np.array([self.requested(), sent and not is_root, sent and is_root], dtype=np.int64)
        total = np.empty_like(mine)
        topology.world.Allreduce(mine, total)
        known, to_root, by_root = map(int, total)
        if not known or self._is_settled:
            return
        self._known = self._has_told = self._is_settled = True
        expected = to_root if is_root else by_root * topology.is_leader
        while self._num_heard < expected:
            self._receive()
        MPI.Request.Waitall(self._sends)
