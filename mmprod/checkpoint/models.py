"""Consolidated weights -> models ready for use: eval mode, fp32, no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mmprod.checkpoint.run import Run
from mmprod.errors import IntegrityError
from mmprod.models.codec import Codec, build_codec
from mmprod.models.fusion import Fusion, build_fusion

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Models:
    """Both models of a run, with the averaged (EMA) weights."""

    codec: Codec
    fusion: Fusion


def load_models(run: Run) -> Models:
    """Both models of a run.

    Raises IntegrityError when one was not trained or its weights do not fit.
    """
    paths = run.weights_path("codec"), run.weights_path("fusion")
    return Models(
        codec=load_weights(build_codec(run.config.codec), paths[0]),
        fusion=load_weights(build_fusion(run.config.fusion, run.dims), paths[1]),
    )


def load_codec(run: Run) -> Codec:
    """The codec alone (of a run whose fusion stage may be missing)."""
    return load_weights(build_codec(run.config.codec), run.weights_path("codec"))


def load_weights(model: M, path: Path) -> M:
    """Fill `model` with exactly the tensors of a safetensors file.

    Raises IntegrityError on any difference.
    """
    try:
        model.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise IntegrityError(
            f"{path} does not hold the weights of this model: {error}",
            hint="take the run from a good copy, or train again",
        ) from error
    return model.float().eval().requires_grad_(False)
