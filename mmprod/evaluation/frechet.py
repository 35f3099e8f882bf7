"""Frechet distance between two sets of features (Heusel et al. 2017, section 3; Dowson and Landau
1982). Torch-free.

    d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

The root is taken of a symmetric matrix, by eigenvalues, in float64: unlike the usual root of S1 S2
it is never complex and needs no repair.

The figure called FID is this distance on the features of one published Inception network, in one
published form. An ONNX file of that network is somebody's own conversion and cannot be told from
another by a hash, so the distance is never called FID here: its name says whose features they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmprod.errors import ConfigError, NumericsError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """Mean (F,) and covariance (F, F) of features, and how many there were."""

    mean: Array
    covariance: Array
    count: int


def fit_gaussian(features: npt.NDArray[np.floating]) -> Gaussian:
    """features (n, F), n >= 2 -> their Gaussian, covariance with n - 1. Raises ConfigError for too
    few, NumericsError for values that are not finite.
    """
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ConfigError(
            f"features of shape {values.shape} make no Gaussian", hint="give two pictures or more"
        )
    if not np.isfinite(values).all():
        raise NumericsError("features are NaN or infinite", hint="check the feature extractor")
    mean = values.mean(axis=0)
    centred = values - mean
    return Gaussian(mean, centred.T @ centred / (len(values) - 1), len(values))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared distance d^2, as FID reports it; 0 for equal Gaussians, never negative."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.shape} and {b.mean.shape} cannot be compared")
    root = _root(a.covariance)
    inner = root @ b.covariance @ root
    eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
    overlap = float(np.sqrt(np.maximum(eigenvalues, 0.0)).sum())
    spread = float(np.trace(a.covariance) + np.trace(b.covariance))
    return max(0.0, float(np.square(a.mean - b.mean).sum()) + spread - 2 * overlap)


def distance_name(features: str, pictures: int) -> str:
    """What the distance on these features is called: never FID, see above."""
    return f"Frechet distance [features: {features}, {pictures} pictures]"


def _root(matrix: Array) -> Array:
    """The symmetric square root of a symmetric matrix without negative eigenvalues (rounding
    apart).
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
