"""The cache of parsed annotation files: the same split as from the file, and never another."""

from pathlib import Path

import pytest
import torch
from data_sets import coco, make, message_of, write_coco

from understudy.data import DetectionData, Limits, cache, open_data
from understudy.data import coco as coco_format


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for the cache, which takes small files, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SMALLEST", 0)
    return tmp_path / "cache" / "understudy" / "annotations"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were parsed, and not taken from the cache."""
    files, parse = [], coco_format._parse
    monkeypatch.setattr(coco_format, "_parse", lambda raw, file: files.append(file) or parse(raw, file))
    return files


def same(one: DetectionData, other: DetectionData) -> bool:
    assert one.classes == other.classes
    assert one.category_ids == other.category_ids
    assert one.image_root == other.image_root
    assert one.records.paths() == other.records.paths()
    names = ("images", "ends", "boxes", "labels", "ignore", "areas", "annotation_ids")
    return all(torch.equal(getattr(one.records, name), getattr(other.records, name)) for name in names)


def test_the_second_time_nothing_is_parsed(tmp_path: Path, entries: Path, parsed: list, caplog) -> None:
    content = coco()
    content["annotations"].append({"id": 100, "image_id": 3, "category_id": 2, "bbox": [5, 5, 0, 10]})
    write_coco(tmp_path / "data" / "instances_train.json", tmp_path / "data" / "images", content)
    first, second = open_data(tmp_path / "data"), open_data(tmp_path / "data")
    assert len(parsed) == len(list(entries.iterdir())) == 1
    assert same(first, second)
    assert [record.getMessage().count("1 box empty") for record in caplog.records] == [1, 1]


def test_a_copy_is_found_and_a_change_is_seen(tmp_path: Path, entries: Path, parsed: list) -> None:
    for place in ("here", "there"):
        path, _ = make("coco flat", tmp_path / place)
        data = open_data(path)
        assert data.records[0].path.is_relative_to(tmp_path / place)
    assert len(parsed) == 1
    (file,) = path.glob("*.json")
    file.write_text(file.read_text().replace('"cat"', '"cow"'))
    assert open_data(path).classes == ("cow", "dog")
    assert len(list(entries.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "half", "one byte", "another array", "a folder"])
def test_a_damaged_entry_is_parsed_anew(damage: str, tmp_path: Path, entries: Path, parsed: list) -> None:
    path, _ = make("coco flat", tmp_path / "data")
    first = open_data(path)
    (entry,) = entries.iterdir()
    content = entry.read_bytes()
    if damage == "a folder":
        entry.unlink()
        entry.mkdir()
    else:
        boxes = first.records.boxes.numpy().tobytes()
        entry.write_bytes(
            {
                "empty": b"",
                "half": content[: len(content) // 2],
                "one byte": content.replace(boxes, bytes([boxes[0] ^ 1]) + boxes[1:]),
                "another array": content.replace(b"labels.npy", b"lables.npy"),
            }[damage]
        )
    assert same(first, open_data(path))
    assert len(parsed) == 2
    assert damage == "a folder" or entry.read_bytes() == content


def test_what_may_be_read_is_decided_each_time(tmp_path: Path, entries: Path) -> None:
    path, _ = make("coco flat", tmp_path / "data")
    image = open_data(path).records[1].path
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    assert "a link leads outside" in message_of(path)
    assert len(open_data(path, limits=Limits(allow_outside=True))) == 3


def test_faults_and_sizes_of_image_files_are_not_kept(tmp_path: Path, entries: Path) -> None:
    content = coco()
    for row in content["images"]:
        del row["width"], row["height"]
    write_coco(tmp_path / "a" / "instances_train.json", tmp_path / "a" / "images", content)
    open_data(tmp_path / "a")
    content["annotations"][0]["category_id"] = 99
    write_coco(tmp_path / "b" / "instances_train.json", tmp_path / "b" / "images", content)
    assert message_of(tmp_path / "b") == message_of(tmp_path / "b")
    assert not entries.exists()


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path, entries: Path, parsed: list) -> None:
    path, _ = make("coco flat", tmp_path / "data")
    entries.parent.mkdir(parents=True)
    entries.touch()
    assert same(open_data(path), open_data(path))
    assert len(parsed) == 2


def test_old_entries_are_removed(tmp_path: Path, entries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_FILES", 2)
    path, _ = make("coco flat", tmp_path / "data")
    (file,) = path.glob("*.json")
    for name in ("cow", "hen", "pig"):
        file.write_text(file.read_text().replace('"cat"', f'"{name}"').replace('"cow"', f'"{name}"'))
        open_data(path)
    assert len(list(entries.iterdir())) == 2


def test_small_files_are_not_kept(tmp_path: Path, entries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SMALLEST", 8 * 2**20)
    open_data(make("coco flat", tmp_path / "data")[0])
    assert not entries.exists()
