"""Runs a graph module with PyTorch: the reference that other backends are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from mmprod.graphs.runner import Array, Arrays, Rivals
from mmprod.graphs.spec import GraphSpec
from mmprod.runners.checks import check_inputs, check_outputs


class TorchRunner:
    """One graph module, put into evaluation mode, on the device where its weights are.

    The module's forward takes the inputs in the order of `spec` and returns a tuple of outputs.
    """

    spec: GraphSpec
    backend: str

    def __init__(self, spec: GraphSpec, module: nn.Module) -> None:
        self.spec = spec
        self._module: nn.Module | None = module.eval()
        first = next(itertools.chain(module.parameters(), module.buffers()), None)
        self._device = torch.device("cpu") if first is None else first.device
        self.backend = f"torch {torch.__version__} {self._device}"

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name; see `graphs.runner.Runner`."""
        if self._module is None:
            raise ValueError(f"the runner of {self.spec.name} is closed")
        sizes = check_inputs(self.spec, inputs)
        tensors = [torch.tensor(inputs[t.name], device=self._device) for t in self.spec.inputs]
        with torch.inference_mode():
            outputs = self._module(*tensors)
        return check_outputs(self.spec, [_to_numpy(value) for value in outputs], sizes)

    def rivals(self, inputs: Arrays) -> dict[str, Rivals]:
        """What the module nearly chose; see `graphs.runner.Ranked`. Nothing for most modules."""
        find = getattr(self._module, "rivals", None)
        if find is None:
            return {}
        check_inputs(self.spec, inputs)
        tensors = [torch.tensor(inputs[t.name], device=self._device) for t in self.spec.inputs]
        with torch.inference_mode():
            found = find(*tensors)
        return {name: Rivals(_to_numpy(ids), _to_numpy(c)) for name, (ids, c) in found.items()}

    def close(self) -> None:
        self._module = None


def compile_each(modules: Iterable[nn.Module]) -> None:
    """Each module is compiled at its first call, and anew for every batch size. One too many is an
    error: by default PyTorch goes on uncompiled after 8, without a word. Holds for the process.
    """
    from torch._dynamo import config  # seconds to import, so not by those who compile nothing

    config.recompile_limit = 64
    config.fail_on_recompile_limit_hit = True
    for module in modules:
        module.compile(dynamic=False)


def _to_numpy(value: torch.Tensor) -> Array:
    """A copy: an output may be a weight of the module, or a view of one."""
    return np.array(value.detach().cpu().numpy(), order="C")
