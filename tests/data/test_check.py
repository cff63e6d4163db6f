"""`check_data` names every planted fault, counts what is there, and draws the boxes where they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from understudy.data import check_data
from understudy.errors import UserError


def image_row(i: int, name: str, width: int = 100, height: int = 80) -> dict:
    return {"id": i, "file_name": name, "width": width, "height": height}


def object_row(i: int, image_id: int, bbox: list[float], category_id: int = 1, **more) -> dict:
    return {"id": i, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def write(
    root: Path, split: str, images: list[dict], annotations: list[dict], classes: tuple[str, ...] = ("cat",)
) -> None:
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    root.mkdir(parents=True, exist_ok=True)
    (root / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Two white images without a fault: a small, a medium, a large and an ignored object."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 160), "white").save(tmp_path / name)
    boxes = [[10, 10, 20, 20], [50, 40, 50, 60], [0, 0, 200, 160]]
    rows = [object_row(i, 1, box) for i, box in enumerate(boxes)] + [object_row(9, 1, [1, 1, 5, 5], iscrowd=1)]
    write(tmp_path, "train", [image_row(1, "a.png", 200, 160), image_row(2, "b.png", 200, 160)], rows)
    return tmp_path


def kinds(faults: list) -> list[str]:
    return sorted({fault.kind for fault in faults})


def test_a_sound_data_set(sound: Path) -> None:
    report = check_data(sound)
    assert report.ok
    assert report.warnings == []
    split = report.splits["train"]
    assert (split.images, split.empty_images, split.ignored) == (2, 1, 1)
    assert split.objects == {"cat": 3}
    assert split.sizes == {"small": 1, "medium": 1, "large": 1}
    text = report.to_text()
    assert "no faults" in text
    assert "cat" in text
    assert json.loads(json.dumps(report.to_dict()))["splits"]["train"]["images"] == 2


def test_class_names_that_differ_in_case_or_blanks_are_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80), "white").save(tmp_path / "a.png")
    classes = ("Stop sign", "stop  sign", "stop")
    rows = [object_row(i, 1, [10, 10, 20, 20], category_id=i) for i in (1, 2, 3)]
    write(tmp_path, "train", [image_row(1, "a.png")], rows, classes)
    report = check_data(tmp_path)
    assert (report.ok, kinds(report.warnings)) == (True, ["class names alike"])
    assert report.warnings[0].where == '"Stop sign", "stop  sign"'


def test_every_planted_fault_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8))
    for name in ("fine.jpg", "cut.jpg", "small.jpg"):
        noise.save(tmp_path / name)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:3000])
    noise.resize((50, 40)).save(tmp_path / "small.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(tmp_path / "turned.jpg", exif=exif)
    noise.convert("L").save(tmp_path / "grey.png")
    Image.fromarray(np.zeros((80, 100), dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.jpg").write_text("no image")
    names = [
        "fine.jpg",
        "cut.jpg",
        "small.jpg",
        "turned.jpg",
        "grey.png",
        "deep.png",
        "text.jpg",
        "gone.jpg",
        "../x.jpg",
    ]
    images = [image_row(i, name) for i, name in enumerate(names)] + [image_row(0, "fine.jpg")]
    good = [1, 1, 50, 50]
    rows = [object_row(0, 0, [5, 5, 0, 9]), object_row(1, 0, [500, 5, 9, 9]), object_row(2, 0, [60, 5, 60, 9])]
    rows += [
        object_row(3, 0, good, category_id=9),
        object_row(4, 0, good),
        object_row(4, 1, good),
        object_row(5, 0, good),
    ]
    write(tmp_path, "train", images, rows, ("cat", "unicorn"))
    write(tmp_path, "val", [], [], ("cat", "unicorn"))
    write(tmp_path, "test", [image_row(0, "fine.jpg")], [object_row(0, 0, good)], ("cat",))
    (tmp_path / "instances_broken.json").write_text("{")

    report = check_data(tmp_path, tmp_path / "sheet.png")
    assert not report.ok
    assert kinds(report.faults) == [
        "box empty",
        "box outside the image",
        "classes differ",
        "duplicate id",
        "empty split",
        "file outside the data set",
        "image missing",
        "image unreadable",
        "size mismatch",
        "split unreadable",
        "unknown category",
    ]
    assert kinds(report.warnings) == [
        "16-bit image",
        "EXIF rotation",
        "box partly outside",
        "class without objects",
        "duplicate object",
        "grey image",
        "images in two splits",
    ]
    of_image = {
        fault.where.split(": ")[-1]: fault.kind for fault in report.faults if fault.kind.startswith(("image", "size"))
    }
    assert of_image == {
        "cut.jpg": "image unreadable",
        "text.jpg": "image unreadable",
        "gone.jpg": "image missing",
        "small.jpg": "size mismatch",
    }
    assert "by 20.0 pixels of 100x80" in report.to_text()
    assert (tmp_path / "sheet.png").is_file()


def test_the_contact_sheet_shows_boxes_where_they_are(sound: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "sheet.png"
    report = check_data(sound, file)
    assert report.contact_sheet == file
    sheet = np.asarray(Image.open(file).convert("RGB")).astype(int)
    coloured = (sheet.max(2) - sheet.min(2)) > 100
    # the 200x160 image fills a 480x360 tile by a factor of 2.25, centred, 8 pixels from the corner of the sheet
    left = 8 + (480 - 450) // 2
    x1, y1, x2, y2 = (int(value * 2.25) for value in (50, 40, 100, 100))
    assert coloured[8 + (y1 + y2) // 2, left + x1]
    assert coloured[8 + (y1 + y2) // 2, left + x2]
    assert coloured[8 + y2, left + (x1 + x2) // 2]
    assert not coloured[8 + (y1 + y2) // 2, left + (x1 + x2) // 2]


def test_a_sheet_that_cannot_be_written(sound: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.png, got .*sheet\.jpg"):
        check_data(sound, sound / "sheet.jpg")
    with pytest.raises(UserError, match="is a file, not a folder"):
        check_data(sound, sound / "a.png" / "sheet.png")


def test_a_sheet_replaces_no_file_unless_forced(sound: Path, tmp_path: Path) -> None:
    file = tmp_path / "sheet.png"
    file.write_text("mine")
    with pytest.raises(UserError, match=r"sheet\.png exists and is not overwritten: .*--force"):
        check_data(sound, file)
    assert file.read_text() == "mine"
    check_data(sound, file, force=True)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_paths_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No data set at"):
        check_data(tmp_path / "nothing")


def test_real_photos_are_sound(shared: Path) -> None:
    report = check_data(shared / "data" / "bccd")
    assert report.ok
    assert report.splits["train"].objects == {"RBC": 2381, "WBC": 214, "Platelets": 209}
    assert list(report.splits) == ["train", "val", "test"]


def test_images_that_train_and_val_share_are_warned_of(sound: Path) -> None:
    """One file in both, and a copy of another."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(sound / "b.png")
    (sound / "copy.png").write_bytes((sound / "b.png").read_bytes())
    rows = [image_row(1, "a.png", 200, 160), image_row(2, "copy.png", 200, 160)]
    write(sound, "val", rows, [object_row(1, 1, [10, 10, 20, 20])])
    report = check_data(sound)
    assert [(fault.kind, fault.where, fault.what) for fault in report.warnings] == [
        ("images in two splits", "train and val", "1, the first is a.png"),
        ("same image in two splits", "train and val", "1, e.g. b.png and copy.png"),
    ]


def test_the_boxes_of_the_training_split_are_described(sound: Path) -> None:
    seen = []

    def describe(data):
        seen.append((data.split, len(data.records.labels), data.classes))
        return "a line", ["a misfit"]

    report = check_data(sound, describe_boxes=describe)
    assert seen == [("train", 4, ("cat",))]
    assert "a line" in report.to_text()
    assert [tuple(warning) for warning in report.warnings] == [("boxes do not fit the anchors", "train", "a misfit")]
    assert report.to_dict()["boxes"] == "a line"
