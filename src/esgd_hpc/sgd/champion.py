"""How the fittest state ever seen is kept where training leaves it for a worse one.

With back-off always applied nothing fitter is ever left; with `backoff_probability` < 1 (section
4.3: 0.7) the best can be. Then it stays as the population's champion until something as fit is
found. It is never trained, and never a parent.
"""

from collections.abc import Callable

from esgd_hpc import pulse
from esgd_hpc.parallel.exchange import Exchange
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Individual, Population, Weights

_CHAMPION = 0
"""Under what its weights travel."""


class Lost:
    """The fittest state that this group left for a worse one in an SGD step, if it may be the best.

    Only states at least as fit as `bound`, the best fitness before, are worth their memory.
    """

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self.record: Individual | None = None
        self.weights: Weights | None = None
        """On the leader alone."""

    def offer(self, record: Individual, weights: Callable[[], Weights] | None) -> None:
        """Keep a state that is left behind; `weights` makes a copy, on the leader alone."""
        if record.fitness > self._bound:
            return
        if self.record is None or _rank(record) < _rank(self.record):
            self.record = record
            self.weights = weights() if weights else None


def _rank(record: Individual) -> tuple[float, int]:
    return record.fitness, record.uid


def keep_champion(population: Population, lost: Lost, topology: Topology, size: int) -> None:
    """Make the fittest state ever seen the champion, where the population has none as fit.

    Its weights, of shape [size], go to rank 0. Collective over the world.
    """
    make_champion(population, lost, topology, size, population.best().fitness)


def make_champion(
    population: Population, lost: Lost, topology: Topology, size: int, bound: float
) -> bool:
    """Make the fittest state that a group lost the champion, and say so, if it is below `bound`.

    Collective over the world.
    """
    with pulse.waiting("waiting for all ranks, looking for the fittest"):
        offers = topology.world.allgather(lost.record if topology.is_leader else None)
    found = [(_rank(record), rank, record) for rank, record in enumerate(offers) if record]
    if not found or min(entry[0] for entry in found)[0] >= bound:
        return False
    _, rank, population.champion = min(found, key=lambda entry: entry[:2])
    source = rank // topology.ranks_per_group
    if topology.is_leader:
        _bring_champion(population, lost, source, topology, size)
    return True


def _bring_champion(
    population: Population, lost: Lost, source: int, topology: Topology, size: int
) -> None:
    """Bring what group `source` lost to rank 0. Collective over the leaders."""
    exchange = Exchange(topology.peers, size)
    population.champion_weights = None
    if topology.group_number == source:
        assert lost.weights is not None
        if source == 0:
            population.champion_weights = lost.weights
        else:
            exchange.send(lost.weights, 0)
    elif topology.group_number == 0:
        exchange.ask(_CHAMPION, source)
        population.champion_weights = exchange.get(_CHAMPION)
    exchange.close()
