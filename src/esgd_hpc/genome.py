"""A network as one flat float32 vector, and back, without copies where possible.

`Genome` moves the parameters and floating buffers of a module into one contiguous tensor and makes
them views of it, so that loading, averaging and saving an individual is one copy of one vector.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from esgd_hpc.errors import InputError
from esgd_hpc.layout import Entry, Layout
from esgd_hpc.population import Weights


class Genome:
    """A module whose parameters and floating buffers lie in `flat`, float32, shape [P].

    Raises InputError for a parameter or floating buffer that is not float32.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters: dict[str, Tensor] = dict(module.named_parameters())
        kept = module.state_dict(keep_vars=True)
        buffers = {name: buffer for name, buffer in module.named_buffers() if name in kept}
        # What is not in the state must not carry over from one individual to the next.
        self._passing = {
            name: buffer.clone() for name, buffer in module.named_buffers() if name not in kept
        }
        floating = {name: b for name, b in buffers.items() if b.is_floating_point()}
        integer = {name: b for name, b in buffers.items() if not b.is_floating_point()}
        _refuse_unfit(self.parameters, floating)
        self.layout = _layout(self.parameters, floating, integer, kept)
        device = next(iter(self.parameters.values())).device
        self.flat = torch.zeros(self.layout.size, dtype=torch.float32, device=device)
        self._views = {
            entry.name: self.flat[entry.offset : entry.offset + entry.size].view(entry.shape)
            for entry in self.layout.entries
            if entry.kind != "integer"
        }
        self.gather()

    def gather(self) -> None:
        """Bring `flat` in line with the module."""
        self._bind()
        self._write_integers()

    def _bind(self) -> None:
        """Make tensors views of `flat` again to which something gave other memory.

        `torch.nn.LSTM.flatten_parameters` on a GPU does that, for one.
        """
        with torch.no_grad():
            for name, tensor in (*self.parameters.items(), *self.module.named_buffers()):
                view = self._views.get(name)
                if view is not None and tensor.data_ptr() != view.data_ptr():
                    view.copy_(tensor)
                    tensor.data = view

    def load(self, weights: Weights) -> None:
        """Make the module the individual of these weights, shape [P] on the host."""
        with self.overwriting() as flat:
            flat.copy_(torch.from_numpy(weights))

    @contextmanager
    def overwriting(self) -> Iterator[Tensor]:
        """Give `flat`, to be overwritten in the block, and make the module that individual."""
        self._bind()
        yield self.flat
        self._read_integers()
        for name, initial in self._passing.items():
            owner, _, last = name.rpartition(".")
            self.module.get_submodule(owner)._buffers[last] = initial.clone()

    def _read_integers(self) -> None:
        integers = self._integers()
        if integers:
            host = self.flat[self.layout.num_floats :].cpu().numpy()
            for entry, buffer in integers:
                start = entry.offset - self.layout.num_floats
                raw = host[start : start + entry.size].view(np.uint8)[: buffer.nbytes]
                values = np.frombuffer(raw.tobytes(), dtype=entry.dtype).reshape(entry.shape)
                buffer.copy_(torch.from_numpy(values.copy()))

    def store(self) -> Weights:
        """Return a copy of the module's state as one vector, shape [P] on the host."""
        self.gather()
        host: Weights = self.flat.detach().cpu().numpy()
        return host.copy() if host.ctypes.data == self.flat.data_ptr() else host

    def floating_buffers(self) -> Tensor:
        """Return the part of `flat` that holds the floating buffers, after `gather`."""
        return self.flat[self.layout.num_parameters : self.layout.num_floats]

    def _integers(self) -> list[tuple[Entry, Tensor]]:
        if self.layout.size == self.layout.num_floats:
            return []
        buffers = dict(self.module.named_buffers())
        return [(e, buffers[e.name]) for e in self.layout.entries if e.kind == "integer"]

    def _write_integers(self) -> None:
        for entry, buffer in self._integers():
            raw = np.zeros(4 * entry.size, dtype=np.uint8)
            raw[: buffer.nbytes] = np.frombuffer(
                buffer.detach().cpu().contiguous().numpy().tobytes(), dtype=np.uint8
            )
            self.flat[entry.offset : entry.offset + entry.size].copy_(
                torch.from_numpy(raw.view(np.float32))
            )


def weights_of(module: nn.Module) -> Weights:
    """Return the weights of a network that is used for nothing else afterwards, shape [P]."""
    return Genome(module).store()


def _refuse_unfit(parameters: dict[str, Tensor], floating: dict[str, Tensor]) -> None:
    if not parameters:
        raise InputError("the task's model has no parameters; a population needs some to train")
    for name, tensor in {**parameters, **floating}.items():
        if nn.parameter.is_lazy(tensor):
            raise InputError(
                f"the task's model has {name} of no shape yet; give its layers their input sizes"
                " instead of using lazy modules"
            )
        if tensor.dtype != torch.float32:
            raise InputError(
                f"the task's model has {name} of type {tensor.dtype}; populations are float32:"
                " use model.float(), and autocast inside the loss for lower precision"
            )


def _layout(
    parameters: dict[str, Tensor],
    floating: dict[str, Tensor],
    integer: dict[str, Tensor],
    state: dict[str, Tensor],
) -> Layout:
    entries: list[Entry] = []
    offset = 0
    for kind, tensors in (("parameter", parameters), ("buffer", floating), ("integer", integer)):
        for name, tensor in tensors.items():
            size = tensor.numel() if kind != "integer" else -(-tensor.nbytes // 4)
            entries.append(
                Entry(
                    name=name,
                    offset=offset,
                    size=size,
                    shape=tuple(tensor.shape),
                    kind=kind,  # type: ignore[arg-type]
                    dtype=str(tensor.dtype).removeprefix("torch."),
                )
            )
            offset += size
    names = {id(t): name for name, t in {**parameters, **floating, **integer}.items()}
    aliases = {
        name: names[id(tensor)]
        for name, tensor in state.items()
        if id(tensor) in names and names[id(tensor)] != name
    }
    return Layout(entries=tuple(entries), aliases=aliases)
