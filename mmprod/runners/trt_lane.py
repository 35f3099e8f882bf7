"""One way through an engine: a stream, buffers, a context per profile, captured CUDA graphs.

    inputs -> upload -> [context of the profile that takes this batch | its CUDA graph] -> download

An engine may have several lanes, each used by one thread at a time: contexts share the engine's
weights and nothing else. A CUDA graph holds the addresses it was captured with, so all graphs of a
lane go when one of its buffers grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.graphs.runner import Array, Arrays
from mmprod.graphs.spec import GraphSpec

Reason = Callable[[], str]
"""the library's last error"""


class Lane:
    """Runs an engine, one call at a time. `memory`: a DeviceMemory of its own, closed with it.

    `where`: the plan, for messages. Raises EnvironmentMissing when the device has no room.
    """

    def __init__(
        self, engine: Any, memory: Any, spec: GraphSpec, where: str, reason: Reason
    ) -> None:
        self._engine, self._memory, self._spec = engine, memory, spec
        self._where, self._reason = where, reason
        self._contexts: dict[int, Any] = {}
        self._buffers: dict[str, tuple[int, int]] = {}
        self._graphs: dict[tuple[object, ...], int] = {}
        self._context_of(0)

    def __call__(self, inputs: Arrays, *, cuda_graph: bool = False) -> list[Array]:
        """Outputs in the order of the spec. `cuda_graph`: capture the work of each new shape once
        and replay it afterwards.

        Raises IntegrityError for what the engine refuses, an engine that cannot be captured too.
        """
        self._memory.activate()
        given = {t.name: np.ascontiguousarray(inputs[t.name]) for t in self._spec.inputs}
        profile = self._profile_for(given)
        context = self._context_of(profile)
        for name, value in given.items():
            address = self._bind(context, name, value.nbytes)
            self._memory.upload(address, value)
            self._expect(context.set_input_shape(name, value.shape), f"the shape of {name}")
        outputs = []
        for tensor in self._spec.outputs:
            shape = tuple(context.get_tensor_shape(tensor.name))
            if min(shape, default=0) < 0:
                raise IntegrityError(f"{self._where}: the shape of {tensor.name} is open: {shape}")
            outputs.append(np.empty(shape, tensor.dtype))
            self._bind(context, tensor.name, outputs[-1].nbytes)
        if cuda_graph:
            shapes = tuple(value.shape for value in given.values())
            self._replay(context, (profile, shapes))
        else:
            self._expect(context.execute_async_v3(self._memory.stream), "to run")
        for tensor, value in zip(self._spec.outputs, outputs, strict=True):
            self._memory.download(value, self._buffers[tensor.name][0])
        self._memory.synchronize()
        return outputs

    def close(self) -> None:
        """Give everything back. Calling it twice is allowed."""
        if self._engine is None:
            return
        self._memory.activate()
        self._drop_graphs()
        for address, _ in self._buffers.values():
            self._memory.free(address)
        self._buffers = {}
        self._contexts = {}
        self._engine = None
        self._memory.close()

    def _replay(self, context: Any, key: tuple[object, ...]) -> None:
        """Launch the graph of these shapes, captured at its first use.

        The engine runs once before the capture: its first run with new shapes may allocate and
        wait, which a capture forbids.
        """
        if key not in self._graphs:
            self._expect(context.execute_async_v3(self._memory.stream), "to run")
            self._memory.synchronize()
            self._memory.begin_capture()
            try:
                done = context.execute_async_v3(self._memory.stream)
            finally:
                graph = self._memory.end_capture()
            if not done:
                self._memory.drop_graph(graph)
            self._expect(done, "to be captured in a CUDA graph")
            self._graphs[key] = graph
        self._memory.launch_graph(self._graphs[key])

    def _profile_for(self, given: dict[str, Array]) -> int:
        """The first optimization profile that takes inputs of these shapes."""
        count = self._engine.num_optimization_profiles
        for profile in range(count if count > 1 else 0):
            if all(self._fits(name, value.shape, profile) for name, value in given.items()):
                return profile
        if count > 1:
            shapes = {name: value.shape for name, value in given.items()}
            raise ConfigError(
                f"{self._where}: none of its {count} profiles takes {shapes}",
                hint="split the batch, or build the engine with a profile for it",
            )
        return 0

    def _fits(self, name: str, shape: tuple[int, ...], profile: int) -> bool:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        bounds = zip(smallest, shape, largest, strict=True)
        return all(low <= size <= high for low, size, high in bounds)

    def _context_of(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:
                raise EnvironmentMissing(
                    f"not run: no execution context for {self._where}: {self._reason()}",
                    hint="nvidia-smi shows whether the device has memory left",
                )
            if profile:
                done = context.set_optimization_profile_async(profile, self._memory.stream)
                self._expect(done, f"profile {profile}")
                self._memory.synchronize()
            self._contexts[profile] = context
        return self._contexts[profile]

    def _bind(self, context: Any, name: str, size: int) -> int:
        """Address of a buffer of at least `size` bytes that the engine uses for this tensor."""
        address, room = self._buffers.get(name, (0, 0))
        if room < size:
            self._drop_graphs()
            if room:
                self._memory.free(address)
                del self._buffers[name]
            address = self._memory.allocate(size)
            self._buffers[name] = (address, size)
        self._expect(context.set_tensor_address(name, address), f"the buffer of {name}")
        return int(address)

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            self._memory.drop_graph(graph)
        self._graphs = {}

    def _expect(self, done: bool, what: str) -> None:
        if not done:
            raise IntegrityError(
                f"{self._where} refused {what}: {self._reason()}",
                hint="build the engine again; is its graph the one of this bundle?",
            )
