"""What loading an image and opening a data set cost, against the ways of before.

The photos are those of a COCO data set, by default one beside the project if there is one, otherwise drawn scenes:

    UNDERSTUDY_PHOTOS=path/to/data python benchmarks/performance.py data

The large data set is generated, of the size of COCO's train2017: 118,000 images (empty files, since opening a data set
reads none) and 860,000 objects with outlines, 420 MB of JSON.
"""

import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from performance_rows import Row, ratio
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from understudy.data import DetectionData, Record, Records, derived_seed, open_data
from understudy.data.loading import LoadedImages, _collate
from understudy.data.scenes import make_scenes

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "voc12s"
IMAGES, OBJECTS = 118_000, 860_000


def rows() -> Iterator[Row]:
    """Measure loading, then opening."""
    with tempfile.TemporaryDirectory() as folder:
        data, which = photos(Path(folder))
        for shorter, longer, least in ((320, 533, 3), (800, 1333, 2.5)):
            yield loading(data, which, shorter, longer, least)
        for shorter, longer in ((320, 533), (800, 1333)):
            yield resizing(data, shorter, longer)
    with tempfile.TemporaryDirectory() as folder:
        yield from opening(Path(folder))


# --- images -----------------------------------------------------------------------------------------------------------


def photos(folder: Path) -> tuple[DetectionData, str]:
    """Return the photos to load, and what they are."""
    place = Path(os.environ.get("UNDERSTUDY_PHOTOS", PHOTOS))
    if place.exists():
        data, what = open_data(place), f"photos of {place.name}"
    else:
        drawn = open_data(make_scenes(folder / "scenes", train=60, val=1, size=480, seed=0))
        for path in map(Path, drawn.records.paths()):
            Image.open(path).convert("RGB").resize((640, 480)).save(folder / f"{path.stem}.jpg")
        files = enumerate(sorted(folder.glob("*.jpg")))
        records = Records.of(Record.without_objects(number, file, (640, 480)) for number, file in files)
        data, what = DetectionData(("thing",), (1,), records, "coco", folder, "train"), "drawn scenes"
    return data, what


def loaded_before(data: DetectionData, shorter: int, longer: int) -> Tensor:
    """Load, convert, resize and pad images and their boxes as versions without `Pixels` did in their workers."""
    dataset, images = LoadedImages(data, [shorter], longer, flip=0.0, seed=0), []
    for place, record in enumerate(data.records):
        with Image.open(record.path) as image:
            array = np.array(image.convert("RGB"))
        pixels = torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div_(255)
        generator = torch.Generator().manual_seed(derived_seed(0, 0, place))
        torch.randint(1, (), generator=generator), torch.rand((), generator=generator)
        dataset._sample(record, pixels, shorter, flipped=False)  # the boxes
        scale = min(shorter / min(pixels.shape[1:]), longer / max(pixels.shape[1:]))
        images.append(
            F.interpolate(
                pixels[None], scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=True
            )[0]
        )
    sides = [-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (-2, -1)]
    batch = torch.zeros(len(images), 3, *sides)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    return batch


def loading(data: DetectionData, which: str, shorter: int, longer: int, least: float) -> Row:
    """Compare what a worker does for batches of 16; the images on the device are equal to the bit."""
    part = few(data, 16)
    dataset = LoadedImages(part, [shorter], longer, flip=0.0, seed=0)

    def now() -> object:
        return _collate([dataset[place, 0] for place in range(len(part))])

    assert torch.equal(now().images, loaded_before(part, shorter, longer))  # ty: ignore
    found = ratio(lambda: loaded_before(part, shorter, longer), now, rounds=9)
    return Row(f"images a second per worker, {shorter} px", found, least, at_least=True, note=f"{which}; equal pixels")


def resizing(data: DetectionData, shorter: int, longer: int) -> Row:
    """Compare the whole way on one thread without a GPU, where nothing is spared but copies."""
    part = few(data, 16)
    dataset = LoadedImages(part, [shorter], longer, flip=0.0, seed=0)

    def now() -> object:
        return _collate([dataset[place, 0] for place in range(len(part))]).to("cpu")  # ty: ignore

    found = ratio(lambda: loaded_before(part, shorter, longer), now, rounds=9)
    note = "the workers leave the resizing to the device"
    return Row(f"images a second with the resizing, on the CPU, {shorter} px", found, note=note)


def few(data: DetectionData, count: int) -> DetectionData:
    """Return the first images of a split."""
    return DetectionData(data.classes, data.category_ids, data.records[:count], data.format, data.source, data.split)


# --- opening ----------------------------------------------------------------------------------------------------------

OPEN = """
import os, re, sys, time
from understudy.data import open_data

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

before, start = resident(), time.process_time()
data = open_data(sys.argv[1])
spent = time.process_time() - start
assert len(data) == int(sys.argv[2])
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print("found", spent, resident() - before, int(peak) / 1e3)
"""


def opening(folder: Path) -> Iterator[Row]:
    """Open the large data set twice, each time in a process of its own, and read it in a worker."""
    file, cache = write_large(folder / "data"), folder / "cache"
    size = f"{IMAGES:,} images, {OBJECTS:,} objects, {file.stat().st_size / 1e6:.0f} MB of JSON; CPU time"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    for name, limit in (("first time", 10), ("second time", 1.5)):
        command = [sys.executable, "-c", OPEN, str(file.parent), str(IMAGES)]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        spent, held, peak = map(float, output.split()[1:])
        yield Row(f"opening, {name}", spent, limit, "s", note=size)
        yield Row(f"memory held, {name}", held, 100, "MB", note=f"peak of the process {peak:.0f} MB")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    data = open_data(file.parent)
    for method in ("fork", "spawn"):
        idle, after = private(method, few(data, 1)), private(method, data)
        note = f"{method}; a worker that has read one image has {idle:.0f} MB"
        yield Row("private memory of a worker after a pass", after - idle, 20, "MB", note=note)


def private(method: str, data: DetectionData) -> float:
    """Return the private memory in MB of a worker of a loader after it has read all records of a split."""
    loader = torch.utils.data.DataLoader(
        Pass(data),
        batch_size=None,
        num_workers=1,
        worker_init_fn=worker_init(),
        multiprocessing_context=multiprocessing.get_context(method),
    )
    return float(next(iter(loader)))


class Pass(torch.utils.data.Dataset):
    """Its one entry is the private memory of the process after all records have been read."""

    def __init__(self, data: DetectionData):
        self.data = data

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> float:
        objects = sum(len(record.boxes) for record in self.data.records)
        assert objects == len(self.data.records.labels)
        kilobytes = re.findall(r"^Private_\w+: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
        return sum(map(int, kilobytes)) / 1e3


def worker_init() -> object:
    """Return what the project's own loaders call in their workers."""
    from understudy.data.loading import _leave_signals_to_the_parent

    return _leave_signals_to_the_parent


def write_large(folder: Path) -> Path:
    """Write a data set of the size and form of COCO's train2017; return its annotation file."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, IMAGES + 1):
        name = f"{number:012d}.jpg"
        (folder / "images" / name).touch()
        address = f"http://images.cocodataset.org/train2017/{name}"
        images.append({"id": number, "file_name": name, "coco_url": address, "height": 480, "width": 640, "license": 3})
    for number in range(1, OBJECTS + 1):
        width, height = 5 + 200 * draw.random(), 5 + 200 * draw.random()
        box = [draw.random() * (640 - width), draw.random() * (480 - height), width, height]
        annotations.append(
            {
                "segmentation": [[round(400 * draw.random(), 2) for _ in range(40)]],
                "area": round(0.7 * width * height, 4),
                "iscrowd": int(draw.random() < 0.01),
                "image_id": draw.randrange(1, IMAGES + 1),
                "bbox": [round(value, 2) for value in box],
                "category_id": draw.randrange(1, 81),
                "id": number,
            }
        )
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    file = folder / "instances_train.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file
