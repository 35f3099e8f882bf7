"""The prepared data set: written whole, read as written, and never trusted blindly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmprod.data.store import data_fingerprint, open_split, read_manifest, verify_data
from mmprod.data.writer import Caption, DataInfo, DataWriter, Sample
from mmprod.errors import ConfigError, IntegrityError

INFO = DataInfo(source="test", size=8, seed=1, generator={"test": "1"}, licences=("CC0-1.0",))


def sample(index: int, weight: float = 1.0) -> Sample:
    image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
    captions = (
        Caption("en", f"number {index}"),
        Caption("en", f"no. {index}"),
        Caption("zh", f"{index}号"),
    )
    return Sample(
        f"key-{index}", image, captions, {"parity": "even" if index % 2 == 0 else "odd"}, weight
    )


def write(root: Path, count: int = 600, weighted: bool = False) -> Path:
    with DataWriter(root, INFO) as writer:
        for index in range(count):
            writer.add("train", sample(index, 0.5 if weighted and index % 2 else 1.0))
        writer.add("val", Sample("plain", np.zeros((8, 8, 3), np.uint8)))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("store") / "data")


def test_what_is_written_is_read(root: Path) -> None:
    split = open_split(root, "train")
    indices = np.array([599, 0, 256, 255, 0])
    assert len(split) == 600
    assert split.size == 8
    assert (split.images(indices) == np.stack([sample(i).image for i in indices])).all()
    assert split.keys(indices) == [f"key-{i}" for i in indices]
    assert split.attributes(indices)[0] == {"parity": "odd"}
    assert open_split(root, "val").attributes(np.array([0])) == [{}]
    assert split.images(np.array([], np.int64)).shape == (0, 8, 8, 3)


def test_captions_are_drawn_by_seed_index_and_language(root: Path) -> None:
    split = open_split(root, "train")
    indices = np.arange(100)
    chosen = split.captions(indices, ("en",), 3)
    assert chosen == split.captions(indices, ("en",), 3)
    assert chosen != split.captions(indices, ("en",), 4)
    assert all(text in (f"number {i}", f"no. {i}") for i, text in enumerate(chosen))
    assert 25 < sum(text.startswith("no.") for text in chosen) < 75
    assert split.captions(indices[:2], ("zh",), 0) == ["0号", "1号"]
    assert split.captions(indices[::-1], ("en",), 3) == chosen[::-1]
    assert sum(1 for _ in split.all_captions(("en", "zh"))) == 1800
    with pytest.raises(ConfigError, match="no caption") as caught:
        split.captions(indices, ("fr",), 0)
    assert caught.value.hint


def test_pictures_are_copies_and_indices_are_checked(root: Path) -> None:
    split = open_split(root, "train")
    split.images(np.array([0]))[:] = 0
    assert split.images(np.array([0])).any()
    for wrong in (-1, 600):
        with pytest.raises(IndexError):
            split.images(np.array([wrong]))
        with pytest.raises(IndexError):
            split.attributes(np.array([wrong]))


def test_weights(root: Path, tmp_path: Path) -> None:
    assert open_split(root, "train").weights is None
    weights = open_split(write(tmp_path / "weighted", 4, weighted=True), "train").weights
    assert weights is not None
    assert weights.tolist() == [1.0, 0.5, 1.0, 0.5]


def test_the_same_samples_give_the_same_fingerprint(root: Path, tmp_path: Path) -> None:
    assert data_fingerprint(write(tmp_path / "again")) == data_fingerprint(root)
    assert data_fingerprint(write(tmp_path / "fewer", 599)) != data_fingerprint(root)


def test_the_manifest_says_where_everything_comes_from(root: Path) -> None:
    manifest = verify_data(root)
    assert manifest["format"] == 1
    assert manifest["splits"]["train"] == {"count": 600, "weighted": False}
    assert manifest["licences"] == ["CC0-1.0"]
    assert manifest["generator"] == {"test": "1"}
    assert [entry["path"] for entry in manifest["files"]] == ["train/data.arrow", "val/data.arrow"]


def test_datasets_opens_the_files(root: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_file(str(root / "train" / "data.arrow"))
    assert table.num_rows == 600
    assert table[3]["image"] == sample(3).image.tobytes()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), DataWriter(tmp_path / "data", INFO) as writer:
        writer.add("train", sample(0))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="no samples"), DataWriter(tmp_path / "data", INFO):
        pass
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_kept_and_wrong_pictures_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "data", 3)
    with pytest.raises(ConfigError, match="exists") as caught:
        DataWriter(root, INFO)
    assert caught.value.hint
    with pytest.raises(ValueError, match="key-0"), DataWriter(tmp_path / "b", INFO) as writer:
        writer.add("train", Sample("key-0", np.zeros((8, 9, 3), np.uint8)))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    root = write(tmp_path / "data", 20)
    path = root / "train" / "data.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="SHA-256") as caught:
        verify_data(root)
    assert caught.value.hint


def test_cut_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "data", 20)
    path = root / "train" / "data.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(IntegrityError, match="size"):
        open_split(root, "train")
    path.write_bytes(b"x" * len(content))
    with pytest.raises(IntegrityError, match="cannot be read"):
        open_split(root, "train")
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        open_split(root, "train")
    with pytest.raises(IntegrityError, match=r"data\.json is missing"):
        open_split(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"kind": "bundle"}, "not the manifest"),
        ({"size": 16}, "does not hold"),
        ({"files": [{"name": "x"}]}, "unknown form"),
    ],
)
def test_manifests_that_lie_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "data", 5)
    manifest = read_manifest(root) | change
    (root / "data.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=message):
        open_split(root, "train")


def test_an_unknown_split_names_the_known_ones(root: Path) -> None:
    with pytest.raises(ConfigError, match="trian") as caught:
        open_split(root, "trian")
    assert "train" in caught.value.hint
