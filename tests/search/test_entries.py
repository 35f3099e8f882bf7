"""What is found to be indexed, and under which name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mmprod.data.writer import Caption, DataInfo, DataWriter, Sample
from mmprod.errors import ConfigError
from mmprod.search.entries import Left, Taken, data_entries, digests_of, folder_entries
from tools.search_toy import DIMS

TAKEN = Taken(DIMS.image_size, ("en",))


def test_captions_come_from_tables_or_files_in_the_model_s_languages(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        "file_name,text,language\na/0.png,a hat,en\na/0.png,帽子,zh\na/1.png,no language,\n"
    )
    entries = folder_entries(folder, TAKEN, [])
    found = {Path(entry.name).relative_to(folder).as_posix(): entry for entry in entries}
    assert found["a/0.png"].captions == ("a hat",)
    assert found["a/1.png"].captions == ("no language",)
    assert found["a/2.png"].captions[0].startswith("mostly")
    assert folder_entries(folder, Taken(16, ("en", "zh")), [])[0].captions == ("a hat", "帽子")


def test_names_with_line_feeds_and_links_out_are_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "odd\nname.png").write_bytes((folder / "a/0.png").read_bytes())
    (folder / os.fsdecode(b"odd\xff.png")).write_bytes((folder / "a/0.png").read_bytes())
    (tmp_path / "outside.png").write_bytes(b"x")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    left: Left = []
    assert len(folder_entries(folder, TAKEN, left)) == 12
    assert {entry["reason"] for entry in left} == {
        "its name holds a line feed", "its name is not UTF-8", "a link that leaves the folder",
    }  # fmt: skip
    for entry in left:
        entry["file"].encode()


def test_a_data_set_is_named_by_split_and_key(tmp_path: Path) -> None:
    info = DataInfo(source="test", size=16, seed=0, generator={})
    both = (Caption("en", "a hat"), Caption("zh", "帽子"))
    with DataWriter(tmp_path / "data", info) as writer:
        for split, value in (("train", 1), ("test", 2)):
            image = np.full((16, 16, 3), value, np.uint8)
            writer.add(split, Sample(f"k{value}", image, both))
    entries = data_entries(tmp_path / "data", (), TAKEN)
    assert [entry.name for entry in entries] == [
        str(tmp_path / "data/train/k1"), str(tmp_path / "data/test/k2"),
    ]  # fmt: skip
    assert [entry.captions for entry in entries] == [("a hat",)] * 2
    (only,) = data_entries(tmp_path / "data", ("test",), TAKEN)
    assert (only.load() == 2).all()
    with pytest.raises(ConfigError, match="has no split"):
        data_entries(tmp_path / "data", ("val",), TAKEN)
    with pytest.raises(ConfigError, match="the model takes 32"):
        data_entries(tmp_path / "data", (), Taken(32, ("en",)))


def test_the_digest_is_of_picture_and_captions(folder: Path) -> None:
    first = digests_of(folder_entries(folder, TAKEN, [])[0])
    (folder / "a/0.txt").write_text("another caption\n")
    second = digests_of(folder_entries(folder, TAKEN, [])[0])
    (folder / "a/0.png").write_bytes((folder / "b/0.png").read_bytes())
    third = digests_of(folder_entries(folder, TAKEN, [])[0])
    assert len({first, second, third}) == 3
    gone = folder_entries(folder, TAKEN, [])[0]
    (folder / "a/0.png").unlink()
    assert isinstance(digests_of(gone), FileNotFoundError)


@pytest.mark.parametrize("name", ["absent", "pictures/a/0.png"])
def test_what_is_no_folder_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist|is not a folder"):
        folder_entries(tmp_path / name, TAKEN, [])
