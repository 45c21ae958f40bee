"""How a group makes children: parents come and go as the plan says, while others are scored."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set

import numpy as np

from esgd_hpc import pulse
from esgd_hpc.evolution import operators
from esgd_hpc.evolution.plan import Child, Part
from esgd_hpc.layout import Layout
from esgd_hpc.parallel.exchange import Exchange
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Transfer, Weights
from esgd_hpc.underway import Underway


class Maker:
    """Makes the children that plans give to this group, from parents of its own and on loan."""

    def __init__(
        self,
        own: dict[int, Weights],
        at_hand: Mapping[int, Weights],
        topology: Topology,
        layout: Layout,
        underway: Underway,
    ) -> None:
        """Take the weights of this group's individuals by uid, and those that every leader has.

        `underway` counts the seconds.
        """
        self._own, self._at_hand = own, at_hand
        self._topology, self._layout, self._timed = topology, layout, underway.timed
        self._exchange = None
        if topology.is_leader:
            self._exchange = Exchange(topology.peers, layout.size)

    def carry_out(
        self,
        part: Part,
        use: Callable[[Child, Weights | None], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Call `use` with each of the group's children, made when its parents have come.

        Makes no more of them once the group is to stop, but takes what is on its way; what this
        group sends may leave later, see `close`. Collective over the group; a child's weights are
        None on ranks that are no leader, and are overwritten after `use`.
        """
        out = np.empty(self._layout.size, dtype=np.float32) if self._exchange else None
        stopped = False
        for child in self._with_parents(part, lambda _: None):
            stopped = stopped or should_stop()
            if stopped:
                continue
            if out is not None:
                self._make(child, out)
            with pulse.also(self._poll):
                use(child, out)

    def make_again(
        self,
        part: Part,
        finish: Callable[[Child, Weights], Weights],
        survivors: Set[int],
    ) -> dict[int, Weights]:
        """Return the group's chosen children by uid, each with weights of its own from `finish`.

        Forgets individuals that are no `survivors` and that no child needs any more. Empty on ranks
        that are no leader.
        """
        last_use = {
            uid: number
            for number, stage in enumerate(part.stages)
            for child in stage.children
            for uid in child.parents
        }

        def forget_dead(number: int) -> None:
            for uid in self._own.keys() - survivors:
                if last_use.get(uid, -1) < number:
                    del self._own[uid]

        made = {}
        for child in self._with_parents(part, forget_dead):
            if self._exchange:
                out = np.empty(self._layout.size, dtype=np.float32)
                self._make(child, out)
                made[child.uid] = finish(child, out)
                self._exchange.poll()
        return made

    def move(self, transfers: Sequence[Transfer], weights: dict[int, Weights]) -> None:
        """Bring weights to other groups for good. Collective over the world."""
        exchange, group = self._exchange, self._topology.group_number
        if exchange is None:
            return
        for transfer in transfers:
            if transfer.source == group:
                exchange.send(weights.pop(transfer.uid), transfer.target)
            elif transfer.target == group:
                exchange.ask(transfer.uid, transfer.source)
        with self._timed("exchange"):
            for transfer in transfers:
                if transfer.target == group:
                    weights[transfer.uid] = exchange.get(transfer.uid)
                    exchange.forget(transfer.uid)

    def close(self) -> None:
        """Wait until all that this group sends has left. Collective over the world."""
        if self._exchange:
            with self._timed("exchange"):
                self._exchange.close()

    def _with_parents(self, part: Part, begin: Callable[[int], None]) -> Iterator[Child]:
        """Yield the children of a part when what they lack has come or is about to.

        `begin` is called with the number of each stage.
        """
        exchange, group = self._exchange, self._topology.group_number
        if exchange:
            for each in part.broadcasts:
                own = self._own[each.uid] if each.source == group else None
                exchange.broadcast(each.uid, each.source, own)
            for transfer in part.sends:
                exchange.send(self._own[transfer.uid], transfer.target)
        asked = 0
        for number, stage in enumerate(part.stages):
            begin(number)
            if exchange:
                for uid in stage.forget:
                    exchange.forget(uid)
                while asked < min(number + 2, len(part.stages)):
                    for transfer in part.stages[asked].borrow:
                        exchange.ask(transfer.uid, transfer.source)
                    asked += 1
            yield from stage.children
        if exchange:
            exchange.forget_all()

    def _poll(self) -> None:
        if self._exchange:
            self._exchange.poll()

    def _make(self, child: Child, out: Weights) -> None:
        with self._timed("exchange"):
            parents = [self._weights_of(uid) for uid in child.parents]
        with self._timed("making"):
            operators.recombine(parents, child.parents, self._layout, out)
            operators.mutate(out, int(child.noise_seed), child.sigma, self._layout)

    def _weights_of(self, uid: int) -> Weights:
        for place in (self._own, self._at_hand):
            if uid in place:
                return place[uid]
        assert self._exchange is not None
        return self._exchange.get(uid)
