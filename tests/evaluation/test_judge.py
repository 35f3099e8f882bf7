"""The judge reads real faces, notices wrong ones, and is never trusted from a changed file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmprod.data.attributes import ATTRIBUTES, HIDDEN, SCORED, sample_attributes
from mmprod.data.avatars import draw
from mmprod.errors import ConfigError, IntegrityError
from mmprod.evaluation.frechet import fit_gaussian, frechet_distance
from mmprod.evaluation.judge import Judge, train_judge


class Faces(NamedTuple):
    images: NDArray[np.uint8]
    attributes: list[dict[str, str]]


def faces(count: int, seed: int, size: int) -> Faces:
    rng = np.random.default_rng(seed)
    attributes = [sample_attributes(rng) for _ in range(count)]
    images = [draw(face, seed * 1_000_000 + i, size) for i, face in enumerate(attributes)]
    return Faces(np.stack(images), attributes)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def held_out() -> Faces:
    return faces(120, 2, 32)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return train_judge(*faces(400, 1, 32), steps=60, seed=0)


def test_it_reads_held_out_faces(judge: Judge, held_out: Faces) -> None:
    accuracy = judge.accuracy(*held_out)
    assert set(accuracy) == {*ATTRIBUTES, "overall"}
    assert accuracy["overall"] > 0.85
    assert accuracy["background"] > 0.9


def test_its_features_do_not_depend_on_the_batch_and_tell_faces_apart(
    judge: Judge, held_out: Faces
) -> None:
    found = judge.features(held_out.images)
    assert found.shape == (120, 128) and np.isfinite(found).all()
    np.testing.assert_allclose(
        judge.features(held_out.images[7:9]), found[7:9], rtol=1e-4, atol=1e-5
    )
    half = fit_gaussian(found[:60])
    near = frechet_distance(half, fit_gaussian(found[60:]))
    blurred = held_out.images.reshape(120, 4, 8, 4, 8, 3).mean((2, 4)).astype(np.uint8)
    far = frechet_distance(half, fit_gaussian(judge.features(blurred)))
    assert 0 < near < far


def test_it_notices_faces_that_do_not_follow_the_wish(judge: Judge, held_out: Faces) -> None:
    others = held_out.attributes[1:] + held_out.attributes[:1]
    assert judge.accuracy(held_out.images, others)["overall"] < 0.6


def test_readings_follow_the_rules_of_the_vocabulary(judge: Judge, held_out: Faces) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    for face in judge.predict(np.concatenate([held_out.images, noise])):
        assert all(value in (*ATTRIBUTES[name], HIDDEN) for name, value in face.items())
        assert (face["hair"] == HIDDEN) == (face["hat"] != "none")
        assert (face["hair_color"] == HIDDEN) == (face["hair"] in (HIDDEN, "bald"))


def test_a_reading_depends_on_the_picture_alone(judge: Judge, held_out: Faces) -> None:
    together = judge.predict(held_out.images)
    assert judge.predict(held_out.images[::-1]) == together[::-1]
    assert judge.predict(held_out.images[:1]) == together[:1]
    assert judge.predict(held_out.images[:0]) == []
    doubled = held_out.images.repeat(2, axis=1).repeat(2, axis=2)
    same = [a == b for a, b in zip(judge.predict(doubled), together, strict=True)]
    assert np.mean(same) > 0.8


def test_training_is_deterministic_and_leaves_the_global_generator_alone(held_out: Faces) -> None:
    state = torch.random.get_rng_state()
    names = ("hat", "background")
    first, second = (train_judge(*held_out, steps=3, seed=4, names=names) for _ in range(2))
    assert first.predict(held_out.images) == second.predict(held_out.images)
    assert (torch.random.get_rng_state() == state).all()
    assert set(first.predict(held_out.images[:1])[0]) == set(names)


def test_it_survives_the_disk_and_refuses_a_changed_file(
    judge: Judge, held_out: Faces, tmp_path: Path
) -> None:
    judge.save(tmp_path)
    assert Judge.load(tmp_path).predict(held_out.images) == judge.predict(held_out.images)
    path = tmp_path / "judge.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="changed") as caught:
        Judge.load(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("change", [{"format": 9}, {"names": ["shoes"]}, {"kind": "codec"}])
def test_it_refuses_a_foreign_description(
    judge: Judge, change: dict[str, object], tmp_path: Path
) -> None:
    judge.save(tmp_path)
    about = json.loads((tmp_path / "judge.json").read_text())
    (tmp_path / "judge.json").write_text(json.dumps(about | change))
    with pytest.raises(IntegrityError, match="format 1"):
        Judge.load(tmp_path)
    (tmp_path / "judge.json").write_text("{}")
    with pytest.raises(IntegrityError, match="describe"):
        Judge.load(tmp_path)


def test_unusable_input_is_refused(held_out: Faces) -> None:
    with pytest.raises(ConfigError):
        train_judge(held_out.images, held_out.attributes[:-1], steps=1, seed=0)
    with pytest.raises(ConfigError):
        train_judge(held_out.images[:0], [], steps=1, seed=0)


@pytest.mark.slow
def test_it_reads_the_headline_attributes_of_held_out_faces_at_97_percent() -> None:
    accuracy = train_judge(*faces(1800, 3, 64), steps=350, seed=0).accuracy(*faces(500, 4, 64))
    assert accuracy["overall"] >= 0.97
    assert all(accuracy[name] >= 0.93 for name in SCORED)
