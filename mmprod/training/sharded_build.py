"""Building a model that no rank ever holds whole, with the initial weights of a plain build.

Inside the context a parameter becomes a shapeless promise (a tensor on the meta device) as soon as
its module registers it. What initialisation writes into it goes to a real tensor beside it; when
the next parameter's turn comes, this rank keeps its shard of that and drops the rest. Every rank
draws the same random numbers as in a plain build, so weights, buffers and the generator's state are
the same to the bit and nothing is sent. Peak: this rank's shards and the largest parameter.

Refused by name: initialisation that reads a parameter, or changes one after another's turn.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from mmprod.training.distributed import World
from mmprod.training.fragments import Fragment, Layout

OVERWRITING = ("uniform_", "normal_", "fill_", "zero_", "copy_")


class ShardedBuild(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, untyped
    """Use it as a context around everything that makes or fills the model; it can be entered again.

    Buffers, and modules built outside, are as ever.
    """

    def __init__(self, world: World) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._world = world
        self._promises: dict[int, Tensor] = {}
        self._shards: dict[int, Tensor] = {}
        self._open: tuple[int, Tensor] | None = None
        self._changes: list[ExitStack] = []

    def __enter__(self) -> ShardedBuild:
        changes = ExitStack()
        changes.callback(register_module_parameter_registration_hook(self._register).remove)
        # Some of torch.nn.init look at what they have drawn, and do nothing to a promise.
        for name, function in list(vars(nn.init).items()):
            if name.endswith("_") and not name.startswith("_"):
                changes.callback(setattr, nn.init, name, function)
                setattr(nn.init, name, self._filling(function))
        self._changes.append(changes)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._changes.pop().close()
        self._close()

    def _filling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of torch.nn.init that fills the real parameter of a promise."""

        @functools.wraps(function)
        def fill(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self._key(tensor) not in self._promises:
                function(tensor, *args, **kwargs)
            else:
                function(self._real(tensor, "fill_"), *args, **kwargs)
            return tensor

        return fill

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        ours = [t for t in args if isinstance(t, Tensor) and self._key(t) in self._promises]
        if not ours or func.is_view:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if not func._schema.is_mutable or len(ours) > 1 or ours[0] is not args[0]:
            raise NotImplementedError(f"{name} reads a parameter while the model is built sharded")
        func(self._real(args[0], name), *args[1:], **kwargs)
        return args[0]

    def shard(self, parameter: Tensor) -> tuple[int, Tensor]:
        """This rank's part of a promised parameter: where it begins in the flattened whole, and its
        fp32 values. Gone after `forget`.
        """
        self._close()
        start, _ = _range(parameter, self._world)
        return start, self._shards[self._key(parameter)]

    def forget(self, parameter: Tensor) -> None:
        """Drop a shard that somebody else keeps by now."""
        key = self._key(parameter)
        del self._shards[key], self._promises[key]

    def _register(self, module: nn.Module, name: str, parameter: Tensor | None) -> Any:
        if parameter is None or self._key(parameter) in self._promises:
            return None
        promise = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
        key = self._key(promise)
        self._promises[key] = promise  # keeps its storage, and so its key, from being used again
        self._turn(key, parameter.detach())
        return promise

    def _real(self, tensor: Tensor, name: str) -> Tensor:
        """The part of the real parameter that a view of its promise means."""
        key = self._key(tensor)
        if self._open is None or self._open[0] != key:
            promise = self._promises[key]
            if name not in OVERWRITING or tensor.numel() != promise.numel():
                raise NotImplementedError(
                    f"{name} changes a parameter after the turn of another one was begun, which "
                    "cannot be done while the model is built sharded"
                )
            self._turn(key, torch.empty(promise.shape, dtype=promise.dtype))
        assert self._open is not None
        return self._open[1].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def _turn(self, key: int, real: Tensor) -> None:
        self._close()
        self._open = key, real

    def _close(self) -> None:
        if self._open is not None:
            key, real = self._open
            start, end = _range(real, self._world)
            self._shards[key] = real.reshape(-1)[start:end].clone()
            self._open = None

    @staticmethod
    def _key(tensor: Tensor) -> int:
        key: int = tensor.untyped_storage()._cdata
        return key


def _range(whole: Tensor, world: World) -> tuple[int, int]:
    """[start, end) of the flattened parameter that a rank keeps under ZeRO 3."""
    part = -(-whole.numel() // world.size)
    return min(world.rank * part, whole.numel()), min((world.rank + 1) * part, whole.numel())


Build = ShardedBuild | nullcontext[None]
"""the context in which a model is made and filled: in shards, or plain"""


def build_for(deepspeed: dict[str, Any] | None, world: World) -> Build:
    """In shards under ZeRO 3, which keeps the weights in shards."""
    zero = (deepspeed or {}).get("zero_optimization") or {}
    return ShardedBuild(world) if zero.get("stage") == 3 else nullcontext()


def whole_copy(model: nn.Module, build: Build, world: World) -> nn.Module | None:
    """The model that rank 0 evaluates: frozen weights and buffers are those of
    `model`, trained weights only where it was built whole. In the host's memory where it was built
    in shards. None on other ranks. Collective.
    """
    if not isinstance(build, ShardedBuild):
        return copy.deepcopy(model).to(world.device).eval() if world.is_main else None
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    parts = {}
    for name, p in frozen.items():
        start, values = build.shard(p)
        if values.numel():
            parts[name] = Fragment(name, tuple(p.shape), start, {"weight": values})
    exact = Layout(parts, world).gather({n: f.fields["weight"] for n, f in parts.items()})
    if not world.is_main:
        return None
    whole = copy.deepcopy(model)
    for module, name, p in own_parameters(whole):
        setattr(module, name, nn.Parameter(torch.empty(p.shape), requires_grad=p.requires_grad))
    with torch.no_grad():
        for name, p in whole.named_parameters():
            if name in exact:
                p.copy_(exact[name])
    return whole.eval()


@contextmanager
def visiting(model: nn.Module, live: nn.Module) -> Iterator[None]:
    """`model` on the device of `live` for a while, then back where it was."""
    home = next(model.parameters()).device
    model.to(next(live.buffers()).device)
    try:
        yield
    finally:
        model.to(home)


def own_parameters(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Every parameter once, with the module that it belongs to and its name there."""
    return [
        (module, name, p)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
    ]
