"""What each rank of the ring tests does: its share of a batch, loss and gradients to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mmprod.models.contrast import Seen, around_the_ring
from mmprod.training.distributed import join, leave, neighbours
from tests.models.test_contrast import inputs


def main(order_path: Path) -> None:
    order = json.loads(order_path.read_text())
    world = join(group=True)
    image, text, seen, seen_text, scale, bias = inputs(order["batch"])
    share = order["batch"] // world.size
    rows = slice(world.rank * share, (world.rank + 1) * share)
    found = around_the_ring(
        *(Seen(image[rows], seen[rows]), Seen(text[rows], seen_text[rows]), scale, bias),
        neighbours(world),
    )
    gradients = torch.autograd.grad(found, (image, text, scale, bias))
    told = {"loss": float(found.detach()), "gradients": [g.tolist() for g in gradients]}
    (order_path.parent / f"rank-{world.rank}.json").write_text(json.dumps(told))
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
