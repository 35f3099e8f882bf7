"""What each rank of test_measured.py does: train a few bare steps under each DeepSpeed file, and
report bytes of tensors by kind, bytes handed to collectives, and the size of a checkpoint.

Started by `tests.training.ranks.launch`. Collectives are counted before DeepSpeed is imported, as
it keeps references to them.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

STEPS = 2
COUNTED: dict[str, int] = {}


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


WHOLE = {
    "all_reduce": lambda a, k: size(a[0] if a else k["tensor"]),
    "all_gather_into_tensor": lambda a, k: size(a[0] if a else k["output_tensor"]),
    "all_gather": lambda a, k: sum(map(size, a[0] if a else k["tensor_list"])),
    "reduce_scatter_tensor": lambda a, k: size(a[1] if len(a) > 1 else k["input"]),
}
"""bytes of the whole by collective"""


def count_collectives() -> None:
    for name, sizer in WHOLE.items():
        setattr(dist, name, counted(name, getattr(dist, name), sizer))


def counted(name: str, call: Any, sizer: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        COUNTED[name] = COUNTED.get(name, 0) + sizer(args, kwargs)
        return call(*args, **kwargs)

    return wrapper


def everything() -> list[torch.Tensor]:
    gc.collect()
    with warnings.catch_warnings():  # looking at some objects warns
        warnings.simplefilter("ignore")
        return [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and not o.is_meta]


def measure(job: Any) -> dict[str, Any]:
    """The last of a few steps."""
    from mmprod.planning.activations import LiveBytes
    from mmprod.training.ema import Ema
    from mmprod.training.footprint import footprint
    from mmprod.training.shares import Shares

    cfg, world, backend, task = job.cfg, job.world, job.backend, job.task
    ema = Ema(backend.weights(), cfg.ema)
    shares = Shares(cfg.seed, cfg.batch, world.rank, world.size, backend.accumulation)
    for step in range(STEPS):
        COUNTED.clear()
        for share in shares.of(step, task.size, task.weights):
            batch = task.batch(share)
            losses = task.losses(backend.forward(*batch), batch, step)
            backend.backward(losses["loss"])
        del losses, batch
        before = footprint(backend, ema.average, task)
        live = LiveBytes(everything())
        with live:
            backend.step(cfg.lr)
        task.after_step()
        ema.update(backend.weights(), step + 1)
    collectives = dict(COUNTED)
    return {
        "rest": footprint(backend, ema.average, task),
        "before_step": before,
        "update": live.peak,
        "collectives": collectives,
    }


def main(order_path: Path) -> None:
    from mmprod.training.distributed import join, leave
    from tests.planning.measured import config_of
    from tests.training.tiny import make_job

    order = json.loads(order_path.read_text())
    count_collectives()
    world = join(group=True)
    found = {}
    for name, case in order["cases"].items():
        folder = Path(order["folder"]) / name
        config = config_of(case["precision"])
        job = make_job(config, folder, stage=case["stage"], world=world, deepspeed=case["file"])
        found[name] = measure(job)
    (order_path.parent / f"rank-{world.rank}.json").write_text(json.dumps(found))
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
