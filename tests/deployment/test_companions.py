"""What lies beside an ONNX file: the program, the page and the README."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from exported_files import facts
from PIL import Image

import understudy.deployment
from understudy.data.transforms import resize
from understudy.deployment.companions import readme, write_beside

SOURCE = Path(understudy.deployment.__file__).parent / "beside"


@pytest.fixture(scope="module")
def detect() -> ModuleType:
    """The program as a module."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    spec = importlib.util.spec_from_file_location("detect", SOURCE / "detect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [(32, 48), (16, 9), (90, 70), (1, 1)], ids=str)
def test_the_same_pixels_as_in_training(detect, size):
    image = np.random.default_rng(0).random((50, 41, 3), np.float32)
    expected = resize(torch.from_numpy(image).permute(2, 0, 1), size).permute(1, 2, 0)
    np.testing.assert_allclose(detect.resized(image, *size), expected, atol=1e-5)  # a level is 4e-3


def of(detect, stated) -> "detect.Detector":  # ty: ignore[unresolved-reference]
    """A detector whose file finds one box: the first half of its input, in width."""
    detector = object.__new__(detect.Detector)
    detector.facts = json.loads(stated.to_json())

    def run(_, inputs):
        detector.seen = inputs["image"]
        count, _, height, width = inputs["image"].shape
        boxes = np.zeros((count, 100, 4), np.float32)
        boxes[:, 0] = [0, 0, width / 2, height]
        labels, scores = np.full((count, 100), -1), np.zeros((count, 100), np.float32)
        labels[:, 0], scores[:, 0] = 1, 0.75
        return boxes, scores, labels, np.ones(count, np.int64)

    detector.session = SimpleNamespace(run=run)
    return detector


def test_boxes_in_pixels_of_the_photo(detect):
    photo = Image.new("RGB", (200, 100), (255, 0, 0))
    detector = of(detect, facts())  # shorter side 64, longer side at most 96
    assert detector(photo) == [{"box": pytest.approx([0, 0, 100, 100]), "label": "b", "score": 0.75}]
    assert detector.seen.shape == (1, 3, 48, 96)
    assert detector.seen.dtype == np.float32
    assert detector.seen[0, :, 0, 0].tolist() == [1, 0, 0]
    assert detector(photo, score=0.8) == []


def test_a_fixed_size_of_bytes(detect):
    photo = Image.new("L", (200, 100), 255)
    detector = of(detect, replace(facts(), size=(64, 64), batch=2, input="uint8", mean=(0.0, 0.5, 1.0)))
    (found,) = detector(photo)
    assert found["box"] == pytest.approx([0, 0, 100, 100])  # clipped to the photo, which fills the upper half
    assert detector.seen.shape == (2, 3, 64, 64)
    assert detector.seen.dtype == np.uint8
    assert detector.seen[1, :, 31, 0].tolist() == [255, 255, 255]
    assert detector.seen[1, :, 32, 0].tolist() == [0, 128, 255]


def test_the_program(detect, tmp_path, monkeypatch, capsys):
    detector = of(detect, facts())
    monkeypatch.setattr(detect, "Detector", lambda _: detector)
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (80, 60)).save(photo)
    (tmp_path / "text.jpg").write_text("text")
    monkeypatch.setattr(sys, "argv", ["detect.py", str(photo), str(tmp_path / "text.jpg"), "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        detect.main()
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split() == ["b", "0.75", "0.0", "0.0", "40.0", "60.0"]
    assert "text.jpg cannot be read as an image" in said.err
    with Image.open(photo) as before, Image.open(tmp_path / "photo.png") as drawn:
        assert before.format == "JPEG"  # not overwritten
        assert drawn.size == before.size


def test_a_file_that_is_not_ours(detect, tmp_path, monkeypatch):
    (tmp_path / "student.onnx").write_text("text")
    monkeypatch.setattr(sys, "argv", ["detect.py", "a.jpg", "--model", str(tmp_path / "student.onnx")])
    with pytest.raises(SystemExit, match=r"Error: .*student\.onnx cannot be loaded: "):
        detect.main()


CASES = {
    "any size": facts(),
    "fixed": replace(facts(), size=(64, 96), batch=2, input="uint8", AP=0.4321, licence="CC0"),
    "raw": replace(facts(), raw=True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_readme_is_filled_in(case):
    stated = replace(CASES[case], versions={"understudy": "1.2", "torch": "2.13"})
    text = readme(stated)
    assert not re.search(r"[{}]", text)
    steps = re.findall(r"^(\d)\. ", text, re.MULTILINE)
    assert steps == [str(number) for number in range(1, len(steps) + 1)]
    assert ("43.2" in text, "CC0" in text, "(2, 3, 64, 96)" in text) == ((case == "fixed"),) * 3
    assert ("detect.py" in text) == (case != "raw")


def test_what_is_written(tmp_path):
    stated = replace(facts(), classes=("a", "</script>", "c"), versions={"understudy": "1.2"})
    files = write_beside(tmp_path, stated)
    assert sorted(file.name for file in files) == ["README.md", "detect.html", "detect.py"]
    page = (tmp_path / "detect.html").read_text()
    assert "/*FACTS" not in page
    assert "/*COMMAND" not in page
    assert page.count("</script>") == 2
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    if shutil.which("node"):
        (tmp_path / "page.js").write_text(script)
        subprocess.run(["node", "--check", tmp_path / "page.js"], check=True)
    assert '"\\u003c/script>"' in script
    assert [file.name for file in write_beside(tmp_path, replace(stated, raw=True))] == ["README.md"]
