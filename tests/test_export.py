"""Exported students run where understudy is not installed, with the same detections."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.data import load_image
from understudy.errors import RunError, UserError
from understudy.evaluation.prediction import predict
from understudy.export import export

WITHOUT_UNDERSTUDY = """
import json, runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("understudy", "lightning"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
try:
    import understudy
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("understudy can be imported")

photos, *folders = sys.argv[1:]
sys.path.insert(0, folders[0])
import torch
torch.set_num_threads(1)
from detector import load
images = torch.load(folders[0] + "/images.pt", weights_only=True)
for folder in folders:
    model, classes = load(folder)
    with torch.no_grad():
        found = [{key: value.tolist() for key, value in model([image])[0].items()} for image in images]
    print(json.dumps({"class": type(model).__module__, "classes": classes, "found": found}))

sys.argv = [folders[0] + "/detector", photos + "/a.png", photos + "/c.png"]
runpy.run_path(sys.argv[0], run_name="__main__")  # python exported/detector a.png c.png
assert not any(name.startswith(("understudy", "lightning")) for name in sys.modules)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several sizes, none a multiple of anything; and a grey one."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, shape in (("a.png", (75, 101, 3)), ("b.png", (90, 61, 3)), ("c.png", (70, 70))):
        small = Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8))
        small.resize((shape[1] * 2, shape[0] * 2), Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.mark.slow
def test_the_same_detections_by_torchvision_alone(confident, photos, tmp_path):
    """One process without understudy loads two exports, and runs one of them as a program."""
    checkpoints = {name: confident(name) for name in ("fcos_mobilenet_v2", "retinanet_mobilenet_v2")}
    folders = [export(checkpoint, tmp_path / name) for name, checkpoint in checkpoints.items()]
    images = [load_image(file) for file in sorted(photos.iterdir())]
    torch.save(images, folders[0] / "images.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_UNDERSTUDY, str(photos), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for (name, checkpoint), line in zip(checkpoints.items(), lines[:2], strict=True):
        rows = predict(checkpoint, photos, tmp_path / f"{name} predicted", device="cpu")
        assert_equal(rows, json.loads(line), len(images))
    assert_printed(lines[2:], [str(photos / "a.png"), str(photos / "c.png")], folders[0])


def assert_equal(rows: list, theirs: dict, images: int) -> None:
    """Detections of understudy and of the exported detector, image by image."""
    assert theirs["class"].startswith("torchvision.models.detection.")
    assert len(theirs["found"]) == images == 3
    for number, found in enumerate(theirs["found"], start=1):
        ours = [row for row in rows if row["image_id"] == number]
        assert len(ours) == len(found["scores"]) > 10
        assert [row["category"] for row in ours] == [theirs["classes"][label] for label in found["labels"]]
        assert [row["score"] for row in ours] == pytest.approx(found["scores"], abs=1e-5)
        xyxy = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in ours)]
        torch.testing.assert_close(torch.tensor(xyxy), torch.tensor(found["boxes"]), atol=1e-2, rtol=1e-4)


def assert_printed(lines: list[str], photos: list[str], folder: Path) -> None:
    """The program printed each photo, and below it a class, a score and a box for each detection."""
    assert [line for line in lines if not line.startswith("  ")] == photos
    name, score, *box = lines[1].split()
    assert name in json.loads((folder / "detector.json").read_text())["classes"]
    assert 0 < float(score) <= 1
    assert len([float(side) for side in box]) == 4


def test_what_an_export_holds(trained, scenes, tmp_path):
    folder = export(trained, tmp_path / "exported")
    assert sorted(path.name for path in folder.iterdir()) == ["detector", "detector.json", "weights.pt"]
    code = {path.name: path.read_text() for path in (folder / "detector").iterdir()}
    assert {"__init__.py", "__main__.py", "backbones.py", "fcos.py"} <= code.keys()
    assert not any("import understudy" in text or "from understudy" in text for text in code.values())
    description = json.loads((folder / "detector.json").read_text())
    assert set(description) == {"build", "classes", "labels", "category_ids", "AP", "understudy"}
    assert description["labels"] == description["classes"]
    best = json.loads((trained / "result.json").read_text())
    assert description["AP"] == pytest.approx(best["coco"]["AP"])
    weights = torch.load(folder / "weights.pt", weights_only=True)
    assert all(key.startswith(("backbone.", "head.")) for key in weights)


def test_options_without_effect_are_refused_at_once(trained, tmp_path):
    of_graphs = {"size": (64, 64), "batch": 2, "raw": True, "input": "uint8", "opset": 20, "score_threshold": 0.2}
    of_graphs |= {"licence": "CC0", "data": tmp_path, "split": "val"}
    with pytest.raises(UserError) as found:
        export(trained, tmp_path / "exported", **of_graphs, max_ap_loss=2, calibration_photos=9)
    names = [name.replace("_", "-") for name in of_graphs]
    assert sorted(str(found.value).splitlines()[1:]) == sorted(
        [f"  - --{name}: only with --format onnx or openvino" for name in names]
        + [f"  - --{name}: only with --int8" for name in ("max-ap-loss", "calibration-photos")]
    )
    assert not (tmp_path / "exported").exists()


def test_nothing_is_overwritten(trained, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match=r"is not an empty folder\. Choose a new one"):
            export(trained, folder)
    with pytest.raises(UserError, match=r"cannot be created: Not a directory"):
        export(trained, tmp_path / "mine" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_full_disk(trained, tmp_path, monkeypatch):
    def no_room(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(RunError, match=r"Could not write .*weights.pt \(No space left on device\)"):
        export(trained, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_no_checkpoint_no_folder(tmp_path):
    with pytest.raises(UserError, match="nothing does not exist"):
        export(tmp_path / "nothing", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
