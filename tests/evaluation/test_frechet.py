"""The Frechet distance of Gaussians whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest

from mmprod.errors import ConfigError, NumericsError
from mmprod.evaluation.frechet import Gaussian, distance_name, fit_gaussian, frechet_distance


def gaussian(mean: list[float], covariance: list[list[float]]) -> Gaussian:
    return Gaussian(np.array(mean), np.array(covariance), 10)


def test_equal_gaussians_are_at_zero() -> None:
    features = np.random.default_rng(0).normal(size=(40, 60))  # singular: fewer than dimensions
    a = fit_gaussian(features)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_moved_mean_counts_its_square() -> None:
    a = gaussian([0, 0], [[2, 0.3], [0.3, 1]])
    b = gaussian([3, 4], [[2, 0.3], [0.3, 1]])
    assert frechet_distance(a, b) == pytest.approx(25)


def test_commuting_covariances_count_the_difference_of_their_roots() -> None:
    a = gaussian([0, 0], [[9, 0], [0, 4]])
    b = gaussian([0, 0], [[1, 0], [0, 16]])
    assert frechet_distance(a, b) == pytest.approx((3 - 1) ** 2 + (2 - 4) ** 2)


def test_covariances_that_do_not_commute() -> None:
    # For 2 x 2 matrices tr((S1 S2)^1/2) = sqrt(tr(S1 S2) + 2 sqrt(det(S1 S2))).
    s1, s2 = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    root = np.sqrt(np.trace(s1 @ s2) + 2 * np.sqrt(np.linalg.det(s1 @ s2)))
    wanted = np.trace(s1) + np.trace(s2) - 2 * root
    a, b = Gaussian(np.zeros(2), s1, 9), Gaussian(np.zeros(2), s2, 9)
    assert frechet_distance(a, b) == pytest.approx(wanted)
    assert frechet_distance(b, a) == pytest.approx(wanted)


def test_a_large_offset_costs_no_precision() -> None:
    features = np.random.default_rng(0).normal(size=(500, 8))
    near = frechet_distance(fit_gaussian(features[:250]), fit_gaussian(features[250:]))
    far = frechet_distance(fit_gaussian(features[:250] + 1e6), fit_gaussian(features[250:] + 1e6))
    assert far == pytest.approx(near, rel=1e-5)


def test_fit_is_the_sample_mean_and_covariance() -> None:
    features = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    found = fit_gaussian(features)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64).T))
    assert found.count == 30


def test_what_is_no_set_of_features_is_refused() -> None:
    with pytest.raises(ConfigError, match="no Gaussian"):
        fit_gaussian(np.zeros((1, 4)))
    with pytest.raises(NumericsError):
        fit_gaussian(np.array([[0.0, np.nan], [1.0, 2.0]]))


def test_the_name_says_whose_features_they_are() -> None:
    name = distance_name("net.onnx, sha256 0123456789ab", 24)
    assert name == "Frechet distance [features: net.onnx, sha256 0123456789ab, 24 pictures]"
    assert "FID" not in name
