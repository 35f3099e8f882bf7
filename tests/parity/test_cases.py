"""Inputs of the comparison: stored ones are checked, generated ones reach every id."""

from __future__ import annotations

import pickle
import types
from pathlib import Path

import numpy as np
import pytest

from mmprod.errors import ConfigError, IntegrityError
from mmprod.graphs.runner import example_inputs
from mmprod.parity.cases import (
    check_batches,
    generated_cases,
    generated_count,
    stored_cases,
    stored_names,
    sweep_inputs,
)
from mmprod.runners.checks import check_inputs
from tests.parity.toy import SPECS, stored

DECODE = SPECS["codec_decode"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "codec_decode.npz"


def test_stored_cases_come_back_as_written(path: Path) -> None:
    arrays = stored("codec_decode")
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert stored_names(path, DECODE) == ["b1", "b3"]
    cases = list(stored_cases(path, DECODE))
    assert [case.name for case in cases] == ["stored b1", "stored b3"]
    assert [case.samples for case in cases] == [1, 3]
    for case, batch in zip(cases, (1, 3), strict=True):
        assert case.outputs is not None
        np.testing.assert_array_equal(case.inputs["codes"], arrays[f"b{batch}/in/codes"])
        np.testing.assert_array_equal(case.outputs["pixels"], arrays[f"b{batch}/out/pixels"])


def test_stored_cases_are_read_one_at_a_time(path: Path) -> None:
    np.savez(path, **stored("codec_decode"))  # type: ignore[arg-type]
    cases = stored_cases(path, DECODE)
    assert isinstance(cases, types.GeneratorType)
    assert next(cases).name == "stored b1"
    cases.close()


def test_incomplete_or_foreign_content_is_refused(path: Path) -> None:
    arrays = stored("codec_decode")
    without = {key: value for key, value in arrays.items() if key != "b3/out/pixels"}
    for wrong, message in (
        (without, "case b3 does not fit codec_decode: out/pixels"),
        ({**arrays, "b3/in/extra": np.zeros(1)}, "in/extra"),
        ({**arrays, "notes": np.zeros(1)}, "unexpected entry 'notes'"),
        ({**arrays, "b3/in/codes": np.zeros((3, 5), np.int32)}, "input codes has the shape"),
        ({**arrays, "b3/in/codes": np.zeros((3, 4), np.int64)}, "input codes is int64"),
        ({**arrays, "b3/in/codes": np.full((3, 4), 24, np.int32)}, "outside 0..23"),
    ):
        np.savez(path, **wrong)  # type: ignore[arg-type]
        with pytest.raises(IntegrityError, match=message) as caught:
            list(stored_cases(path, DECODE))
        assert "export" in caught.value.hint


def test_files_that_are_no_archive_are_refused(path: Path) -> None:
    np.savez(path, **stored("codec_decode"))  # type: ignore[arg-type]
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(b"\x93NUMPY") + 140] ^= 1
    array = path.with_suffix(".npy")
    np.save(array, np.zeros(3))
    for content in (b"", b"text", whole[:100], bytes(changed), array.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"codec_decode\.npz"):
            list(stored_cases(path, DECODE))
    with pytest.raises(IntegrityError, match="missing"):
        stored_names(path.with_name("missing.npz"), DECODE)


def test_nothing_in_a_reference_file_is_unpickled(path: Path) -> None:
    arrays = {**stored("codec_decode"), "b1/out/pixels": np.array([object()], dtype=object)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="cannot be read: Object arrays"):
        list(stored_cases(path, DECODE))
    path.write_bytes(pickle.dumps({"b1/in/codes": 1}))
    with pytest.raises(IntegrityError, match="cannot be read"):
        stored_names(path, DECODE)


@pytest.mark.parametrize("name", SPECS)
def test_generated_cases_fit_the_graph_and_are_counted(name: str) -> None:
    spec = SPECS[name]
    cases = list(generated_cases(spec, (1, 3), 2))
    assert len(cases) == generated_count(spec, (1, 3), 2)
    for case in cases:
        assert case.outputs is None
        assert check_inputs(spec, case.inputs, up_to_max=True) == case.sizes
    noise = [case for case in cases if case.name.startswith("noise")]
    assert [case.sizes["batch"] for case in noise] == [1, 3, 1, 3]
    assert len({case.name for case in cases}) == len(cases)
    for key, value in example_inputs(spec, 3, 1).items():
        np.testing.assert_array_equal(noise[3].inputs[key], value)


@pytest.mark.parametrize("name", SPECS)
def test_the_sweep_reaches_every_id_of_every_plain_graph(name: str) -> None:
    spec = SPECS[name]
    swept = [case.inputs for case in generated_cases(spec, (), 0)]
    if spec.loop_steps or name == "codec_encode":
        assert not swept, "samplers are long, and pictures have no ids"
        return
    for tensor in spec.inputs:
        seen = np.unique(np.concatenate([inputs[tensor.name] for inputs in swept]))
        np.testing.assert_array_equal(seen, np.arange(tensor.below))


def test_generated_inputs_are_the_same_every_time() -> None:
    for name in ("fusion_step", "codec_encode"):
        first, second = (list(generated_cases(SPECS[name], (2,), 2)) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            for key in one.inputs:
                np.testing.assert_array_equal(one.inputs[key], other.inputs[key])
    assert next(sweep_inputs(DECODE))["codes"].dtype == np.int32


@pytest.mark.parametrize(
    ("batches", "seeds", "message"),
    [
        ((0,), 1, "batch 0 is outside 1..16"),
        ((1, 17), 1, "batch 17 is outside 1..16"),
        ((1,), -1, "-1 seeds"),
        ((), 1, "are no cases"),
    ],
)
def test_impossible_requests_are_refused(
    batches: tuple[int, ...], seeds: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_batches(SPECS.values(), batches, seeds)
    assert caught.value.hint
    check_batches(SPECS.values(), (1, 16), 0)


def test_stored_rivals_are_read_with_their_case(tmp_path: Path) -> None:
    spec = SPECS["codec_encode"]
    codes = np.zeros((2, 4), np.int32)
    arrays = {
        "b2/in/pixels": np.zeros((2, 4, 4, 3), np.uint8),
        "b2/out/codes": codes,
        "b2/rivals/codes": np.zeros((2, 4, 3), np.int32),
        "b2/changes/codes": np.zeros((2, 4, 3), np.float32),
    }
    path = tmp_path / "codec_encode.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    (case,) = stored_cases(path, spec)
    assert case.rivals["codes"].ids.shape == case.rivals["codes"].changes.shape == (2, 4, 3)

    broken = {
        "half": {k: v for k, v in arrays.items() if k != "b2/changes/codes"},
        "shape": {**arrays, "b2/rivals/codes": np.zeros((2, 3, 3), np.int32)},
        "type": {**arrays, "b2/changes/codes": np.zeros((2, 4, 3), np.float64)},
        "nan": {**arrays, "b2/changes/codes": np.full((2, 4, 3), np.nan, np.float32)},
        "minus": {**arrays, "b2/changes/codes": np.full((2, 4, 3), -1, np.float32)},
        "input": {**arrays, "b2/rivals/pixels": np.zeros((2, 4, 3), np.int32)},
    }
    for name, content in broken.items():
        np.savez(path, **content)  # type: ignore[arg-type]
        with pytest.raises(IntegrityError):
            list(stored_cases(path, spec))
            pytest.fail(f"{name} was read")
    del arrays["b2/rivals/codes"], arrays["b2/changes/codes"]
    np.savez(path, **arrays)  # type: ignore[arg-type]
    (case,) = stored_cases(path, spec)
    assert case.rivals == {}, "files of before have none"
