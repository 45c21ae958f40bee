"""The ranks of a node take a GPU each, whatever the scheduler lets them see."""

import pytest

from esgd_hpc.config import TopologySettings
from esgd_hpc.device import SeenGpus, choose_device, pick_gpus, visible_gpus
from esgd_hpc.errors import InputError


def node(*seen: str, first: int = 0) -> list[SeenGpus]:
    """Return ranks that see the GPUs of these letters."""
    return [
        SeenGpus(first + place, tuple(letters.split(",")) if letters else ())
        for place, letters in enumerate(seen)
    ]


def unknown(*numbers: int) -> list[SeenGpus]:
    return [SeenGpus(rank, ("",) * number) for rank, number in enumerate(numbers)]


@pytest.mark.parametrize(
    ("seen", "picked"),
    [
        (node("a", "b", "c", "d"), [0, 0, 0, 0]),
        (node("a,b,c,d", "a,b,c,d", "a,b,c,d", "a,b,c,d"), [0, 1, 2, 3]),
        (node("a,b,c,d", "a,b,c,d"), [0, 1]),
        (node("a,b", "c,d"), [0, 0]),
        (node("a,b", "a,b", "c,d", "c,d"), [0, 1, 0, 1]),
        (node("b,a", "c"), [0, 0]),
        (node("", ""), [0, 0]),
        (unknown(1, 1, 1), [0, 0, 0]),
        (unknown(2, 2), [0, 1]),
        (unknown(4, 4), [0, 1]),
    ],
)
def test_each_rank_takes_a_gpu_of_its_own(seen: list[SeenGpus], picked: list[int]) -> None:
    assert pick_gpus("n1", seen, share=False) == picked
    taken = [gpu for rank, place in zip(seen, picked, strict=True) for gpu in rank.gpus[place:][:1]]
    assert len(set(taken) - {""}) == len([gpu for gpu in taken if gpu])


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (node("a", "a", first=6), "2 ranks see 1 GPU, and ranks 6 and 7 .* GPU a; start 1 a node"),
        (node("a,b", "a,b", "a,b"), "3 ranks see 2 GPUs, and ranks 0 and 2 .* GPU a; start 2"),
        (node("a", "a,b"), "ranks 0 and 1 would both compute on GPU a"),
        (unknown(2, 2, 2), "3 ranks see 2 GPUs, and ranks 0 and 2"),
    ],
)
def test_two_ranks_on_one_gpu_are_refused_unless_asked_for(seen: list[SeenGpus], told: str) -> None:
    with pytest.raises(InputError, match=f"node n1: .*{told}.*topology.share_gpus = true"):
        pick_gpus("n1", seen, share=False)
    picked = pick_gpus("n1", seen, share=True)
    assert all(place < len(rank.gpus) for rank, place in zip(seen, picked, strict=True))


def test_shared_gpus_are_shared_evenly() -> None:
    assert pick_gpus("n1", node(*["a,b"] * 4), share=True) == [0, 1, 0, 1]


def test_the_cpu_needs_no_gpu() -> None:
    settings = TopologySettings(device="cpu")
    assert visible_gpus(settings) == ()
    assert choose_device(settings, 3).type == "cpu"


@pytest.mark.gpu
def test_real_gpus_are_told_apart_and_taken() -> None:
    seen = visible_gpus(TopologySettings())
    assert len(set(seen)) == len(seen) > 0
    assert all(seen)
    chosen = choose_device(TopologySettings(deterministic=False), len(seen) - 1)
    assert (chosen.type, chosen.index) == ("cuda", len(seen) - 1)
