"""Hide the labels of every other training photo of a data set in COCO format.

    python benchmarks/half_labelled.py BCCD half

writes half/labelled, a data set with every other photo of the training split and the whole validation split, and
half/unlabelled, a folder of the other training photos. The images are linked, not copied.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def chosen(data: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the annotations of some images."""
    ids = {image["id"] for image in images}
    return data | {"images": images, "annotations": [box for box in data["annotations"] if box["image_id"] in ids]}


def main() -> None:
    """Write the two folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images, instances_train.json and instances_val.json")
    parser.add_argument("output", type=Path, help="new folder")
    given = parser.parse_args()
    labelled, unlabelled = given.output / "labelled", given.output / "unlabelled"
    for folder in (labelled, unlabelled):
        folder.mkdir(parents=True)
    photos = (given.data / "images").resolve()
    (labelled / "images").symlink_to(photos)
    train, val = (json.loads((given.data / f"instances_{split}.json").read_text()) for split in ("train", "val"))
    ordered = sorted(train["images"], key=lambda image: image["file_name"])
    (labelled / "instances_train.json").write_text(json.dumps(chosen(train, ordered[::2])))
    (labelled / "instances_val.json").write_text(json.dumps(val))
    for image in ordered[1::2]:
        (unlabelled / image["file_name"]).symlink_to(photos / image["file_name"])
    print(f"{len(ordered[::2])} photos with labels, {len(ordered[1::2])} without")


if __name__ == "__main__":
    main()
