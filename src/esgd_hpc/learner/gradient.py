"""The gradient of a group: what each rank computes, summed over its ranks.

A small one is one message after the backward pass. A large one travels while that goes on: it is
cut into buckets of one size, and each begins its way as soon as all gradients in it are there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import Protocol
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from esgd_hpc.learner import IndividualFailed

OVERLAP_FROM = 4_000_000
"""Parameters of the smallest network whose gradient travels while it is computed."""
BUCKET = 2_000_000
"""Parameters in a bucket, but for the last one."""


class Sums(Protocol):
    """The part of the group's collectives that a gradient needs, see `parallel.averaging`."""

    def expect(self, *, overlaps: bool) -> None: ...

    def sum(self, flat: Tensor) -> None: ...

    def start_sum(self, flat: Tensor) -> Callable[[], None]: ...


class GroupGradient:
    """The gradient of some parameters, float32 on one device, over the ranks of a group.

    Lies in one vector:

        [ gradient | one count per parameter of ranks that have one | number of failed ranks ]

    Backward passes begin at the last layer, so buckets are cut, and sent, from the end of the
    gradient to its start; counts and failures follow. All ranks send in this order, whatever they
    have: a bucket waits for those behind it, but not beyond the backward pass, and a rank that has
    nothing sends zeros. So neither timing nor failures change who adds what.
    """

    def __init__(self, parameters: Sequence[Tensor], group: Sums) -> None:
        self._parameters = parameters
        self._group = group
        sizes = [parameter.numel() for parameter in parameters]
        self._starts = list(accumulate(sizes, initial=0))
        total = self._starts[-1]
        self._flat = torch.zeros(
            total + len(sizes) + 1, dtype=torch.float32, device=parameters[0].device
        )
        parts = self._flat.split([*sizes, len(sizes), 1])
        self._views = [part.view(p.shape) for part, p in zip(parts, parameters, strict=False)]
        self._counts, self._failures = parts[-2:]
        self._tail = self._flat[total:]
        self._overlaps = total >= OVERLAP_FROM
        group.expect(overlaps=self._overlaps)
        self._bucket = BUCKET
        self._in_backward = False
        self._lock = Lock()  # backward passes may have threads of their own
        self._forget()
        if self._overlaps:
            for place, parameter in enumerate(parameters):
                if parameter.requires_grad:
                    # Python does not see into torch: a hook that held us would keep us for ever.
                    hook = partial(_arrived, ref(self), place)
                    parameter.register_post_accumulate_grad_hook(hook)

    def _forget(self) -> None:
        self._settled = [False] * len(self._parameters)  # whose place in the vector is right
        self._missing = len(self._parameters)  # all parameters from here on are settled
        self._present: set[int] = set()  # parameters that have a gradient
        self._unsent = self._starts[-1]  # the gradient before here is not sent
        self._sums: list[Callable[[], None]] = []

    def compute(self, loss: Tensor | None) -> None:
        """Compute this rank's gradient of the loss; None, where it has no samples, is zeros.

        Parameters must come without gradients. Not collective; other ranks rely on `average` after
        it, also where it raises.
        """
        if loss is not None:
            self._backward(loss)
        late = [place for place, settled in enumerate(self._settled) if not settled]
        grads = {i: grad for i in late if (grad := self._parameters[i].grad) is not None}
        self._present.update(grads)
        with torch.no_grad():
            if none := [self._views[i] for i in late if i not in grads]:
                torch._foreach_zero_(none)
            if grads:
                torch._foreach_copy_([self._views[i] for i in grads], [*grads.values()])
            self._tail.zero_()
            if self._present:
                self._counts[[*self._present]] = 1.0

    def _backward(self, loss: Tensor) -> None:
        if not self._overlaps:
            loss.backward()
            return
        for place, parameter in enumerate(self._parameters):
            if not parameter.requires_grad:  # nothing to wait for
                self._views[place].zero_()
                self._settled[place] = True
        self._in_backward = True
        try:
            loss.backward()
        finally:
            with self._lock:
                self._in_backward = False

    def _arrive(self, place: int, parameter: Tensor) -> None:
        """Take in one gradient of the backward pass under way, and send what is full."""
        with self._lock, torch.no_grad():
            if not self._in_backward:
                return
            if self._starts[place + 1] > self._unsent:
                raise RuntimeError(
                    "a parameter got more gradient after it had been sent to other ranks; where"
                    " torch.utils.checkpoint does that, give it use_reentrant=False"
                )
            self._views[place].copy_(parameter.grad)
            self._settled[place] = True
            self._present.add(place)
            while self._missing and self._settled[self._missing - 1]:
                self._missing -= 1
            while self._unsent and self._next_start() >= self._starts[self._missing]:
                self._send()

    def _next_start(self) -> int:
        return max(0, self._unsent - self._bucket)

    def _send(self) -> None:
        start = self._next_start()
        self._sums.append(self._group.start_sum(self._flat[start : self._unsent]))
        self._unsent = start

    def average(self, failure: str) -> None:
        """Make the parameters' gradients the sum over the group. Collective.

        A rank whose gradient failed says why; then IndividualFailed is raised on all of them.
        """
        if failure:
            self._flat[: self._unsent].zero_()
            self._tail.zero_()
            self._failures.fill_(1.0)
        if self._overlaps:
            while self._unsent:
                self._send()
            self._sums.append(self._group.start_sum(self._tail))
            for wait in self._sums:
                wait()
        else:
            self._group.sum(self._flat)
        self._forget()
        *counts, failures = self._tail.tolist()
        if failures:
            raise IndividualFailed(failure)
        for parameter, view, count in zip(self._parameters, self._views, counts, strict=True):
            # As in plain PyTorch, the optimizer leaves a parameter without gradient alone.
            parameter.grad = view if count else None


def _arrived(gradient: ReferenceType[GroupGradient], place: int, parameter: Tensor) -> None:
    if (alive := gradient()) is not None:
        alive._arrive(place, parameter)
