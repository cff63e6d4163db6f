"""Take a fixed subset of a PASCAL VOC data set in COCO format: six common classes, some photos by a hash of the name.

    python benchmarks/voc_subset.py VOC subset --train 1000 --val 500
    python benchmarks/voc_subset.py VOC all --val 500

Photos without a box of the six classes are left out, and so are the boxes of other classes. Boxes of difficult objects
stay as they are (`iscrowd`: neither trained on nor counted). The images are linked, not copied.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

CLASSES = ("person", "dog", "cat", "sheep", "horse", "cow")


def subset(data: dict[str, Any], count: int | None) -> dict[str, Any]:
    """Return the photos of the classes whose names have the lowest hashes, with their boxes."""
    numbers = {
        entry["id"]: CLASSES.index(entry["name"]) + 1 for entry in data["categories"] if entry["name"] in CLASSES
    }
    boxes = [
        box | {"category_id": numbers[box["category_id"]]}
        for box in data["annotations"]
        if box["category_id"] in numbers
    ]
    shown = {box["image_id"] for box in boxes if not box.get("iscrowd")}
    images = [image for image in data["images"] if image["id"] in shown]
    images.sort(key=lambda image: hashlib.sha1(image["file_name"].encode()).hexdigest())
    kept = {image["id"] for image in images[:count]}
    return {
        "images": images[:count],
        "annotations": [box for box in boxes if box["image_id"] in kept],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }


def main() -> None:
    """Write the annotations of both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images, instances_train.json and instances_val.json")
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("--train", type=int, help="photos for training; default: all")
    parser.add_argument("--val", type=int, help="photos for validation; default: all")
    given = parser.parse_args()
    given.output.mkdir(parents=True)
    (given.output / "images").symlink_to((given.data / "images").resolve())
    for split, count in (("train", given.train), ("val", given.val)):
        name = f"instances_{split}.json"
        found = subset(json.loads((given.data / name).read_text()), count)
        (given.output / name).write_text(json.dumps(found))
        print(f"{split}: {len(found['images'])} photos, {len(found['annotations'])} boxes")


if __name__ == "__main__":
    main()
