"""SGD and Adam, by the functions of torch.optim.

Its classes do the same sums, but the first one that a process makes imports torch's compiler, which
takes each rank as long as torch itself (`bench/startup.py`).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from esgd_hpc.population import Draw

State = dict[int, tuple[Tensor, ...]]
"""What an optimizer remembers of a parameter, by its place: its momentum; both moments and steps.

Only of those that ever had a gradient.
"""


class Optimizer:
    """Updates parameters in place, in the way that was drawn for an individual."""

    def __init__(self, parameters: Sequence[Tensor], draw: Draw) -> None:
        self._parameters = parameters
        self._draw = draw
        self._state: State = {}

    def state(self) -> State:
        """Return a copy of what is remembered."""
        return copy.deepcopy(self._state)

    def restore(self, state: State) -> None:
        """Remember a copy of this instead."""
        self._state = copy.deepcopy(state)

    def step(self, learning_rate: float) -> None:
        """Take one step; a parameter without gradient is left alone."""
        places = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        update = self._adam if self._draw.optimizer == "adam" else self._sgd
        if places:
            with torch.no_grad():
                update(places, learning_rate)

    def _sgd(self, places: list[int], learning_rate: float) -> None:
        momenta = [self._state[i][0] if i in self._state else None for i in places]
        gradients = self._gradients(places)
        sgd(
            [self._parameters[i] for i in places],
            gradients,
            momenta,
            has_sparse_grad=any(gradient.is_sparse for gradient in gradients),
            lr=learning_rate,
            momentum=self._draw.momentum,
            dampening=0.0,
            nesterov=self._draw.nesterov,
            weight_decay=self._draw.weight_decay,
            maximize=False,
        )
        for i, momentum in zip(places, momenta, strict=True):
            if momentum is not None:  # the first one is put into the list
                self._state[i] = (momentum,)

    def _adam(self, places: list[int], learning_rate: float) -> None:
        gradients = self._gradients(places)
        if any(gradient.is_sparse for gradient in gradients):
            raise RuntimeError("Adam cannot take sparse gradients; give embeddings sparse=False")
        for i in places:
            if i not in self._state:
                moment = torch.zeros_like(self._parameters[i], memory_format=torch.preserve_format)
                self._state[i] = (moment, moment.clone(), torch.tensor(0.0))
        first, second, steps = zip(*(self._state[i] for i in places), strict=True)
        adam(
            [self._parameters[i] for i in places],
            gradients,
            [*first],
            [*second],
            [],
            [*steps],
            lr=learning_rate,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=self._draw.weight_decay,
            amsgrad=False,
            maximize=False,
        )

    def _gradients(self, places: list[int]) -> list[Tensor]:
        return [gradient for i in places if (gradient := self._parameters[i].grad) is not None]
