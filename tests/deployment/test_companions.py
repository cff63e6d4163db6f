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
from understudy.data.transforms import resize, resized_size
from understudy.deployment.companions import readme, write_beside
from understudy.evaluation.runtimes import KEY, fitted

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
    np.testing.assert_allclose(detect.resized(image, *size), expected, atol=1e-6)  # a level is 4e-3


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


def test_a_photo_that_a_fixed_size_does_not_hold_is_reduced_as_by_evaluate(detect):
    image = np.random.default_rng(0).random((120, 200, 3), np.float32)
    stated = replace(facts(), size=(40, 48), batch=1, mean=(0.1, 0.2, 0.3))
    pixels, scale = of(detect, stated).prepared(image)
    once = resize(torch.from_numpy(image).permute(2, 0, 1), resized_size((120, 200), 64, 96))
    canvas, size = fitted(once, (40, 48), stated.mean)
    np.testing.assert_allclose(pixels[0], canvas, atol=1e-5)
    assert scale == (200 / size[1], 120 / size[0])


def test_grey_of_16_bits_keeps_its_range(detect):
    grey = np.array([[0, 257, 30000, 65535]], np.uint16)
    assert np.asarray(detect.upright(Image.fromarray(grey)))[0, :, 1].tolist() == [0, 1, 117, 255]
    with pytest.raises(ValueError, match="save it with 8 or 16 bits"):
        detect.upright(Image.fromarray(grey.astype(np.float32)))


def test_the_program(detect, tmp_path, monkeypatch, capsys):
    detector = of(detect, facts())
    monkeypatch.setattr(detect, "Detector", lambda _: detector)
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (80, 60)).save(photo)
    (tmp_path / "text.jpg").write_text("text")
    Image.new("RGB", (100, 100)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)
    files = [str(photo), *(str(tmp_path / name) for name in ("text.jpg", "huge.png", "none.jpg", ""))]
    monkeypatch.setattr(sys, "argv", ["detect.py", *files, "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        detect.main()
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split() == ["b", "0.75", "0.0", "0.0", "40.0", "60.0"]
    expected = [
        "text.jpg is not an image, or of a format that Pillow does not know",
        "huge.png cannot be read as an image: Image size (10000 pixels)",
        "none.jpg does not exist",
        f"{tmp_path} is a folder; name the photos in it",
    ]
    for line, fault in zip(said.err.splitlines(), expected, strict=True):
        assert line.startswith("Error: ")
        assert fault in line
    with Image.open(photo) as before, Image.open(tmp_path / "photo.png") as drawn:
        assert before.format == "JPEG"  # not overwritten
        assert drawn.size == before.size


def first_half(file: Path, stated: str | None) -> Path:
    """Write an ONNX file that finds one box: its constants are 100 rows, of which the first is a detection."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    rows = {
        "boxes": np.tile(np.array([0, 0, 48, 48], np.float32), (1, 100, 1)),
        "scores": np.eye(1, 100, dtype=np.float32) * np.float32(0.75),
        "labels": np.eye(1, 100, dtype=np.int64) * 2 - 1,
        "count": np.ones(1, np.int64),
    }
    of_array = onnx.helper.np_dtype_to_tensor_dtype
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in rows.items()
    ]
    outputs = [onnx.helper.make_tensor_value_info(n, of_array(v.dtype), v.shape) for n, v in rows.items()]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "graph", [image], outputs),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    if stated is not None:
        onnx.helper.set_model_props(model, {KEY: stated})
    onnx.save(model, file)
    return file


def test_a_file_that_is_loaded(detect, tmp_path):
    detector = detect.Detector(first_half(tmp_path / "student.onnx", facts().to_json()), threads=1)
    (found,) = detector(Image.new("RGB", (192, 96)))  # shown to the network as 96 x 48
    assert found == {"box": [0, 0, 96, 96], "label": "b", "score": 0.75}


REFUSED = {
    "missing": (lambda file: file, "{0} cannot be loaded: there is no file {0}; expected a file of"),
    "folder": (lambda file: file.mkdir(), "{0} cannot be loaded: there is no file {0}; expected a file of"),
    "text": (lambda file: file.write_text("text"), "{} cannot be loaded: [ONNXRuntimeError]"),
    "of another origin": (
        lambda file: first_half(file, None),
        "{} cannot be loaded: it was not written by `understudy export`; expected a file of",
    ),
    "raw": (
        lambda file: first_half(file, replace(facts(), raw=True).to_json()),
        "{} cannot be loaded: it was exported with --raw",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_refused(detect, tmp_path, monkeypatch, case):
    make, expected = REFUSED[case]
    make(tmp_path / "student.onnx")
    monkeypatch.setattr(sys, "argv", ["detect.py", "a.jpg", "--model", str(tmp_path / "student.onnx")])
    with pytest.raises(SystemExit) as end:
        detect.main()
    assert str(end.value).startswith(f"Error: {expected.format(tmp_path / 'student.onnx')}")
    assert "\n" not in str(end.value)


WRONG = {
    "a file as folder": (["--output", "photo.png"], "the folder photo.png cannot be made"),
    "a score": (["--score", "7"], "--score 7: expected a number from 0 to 1"),
    "a result that is there": (["--output", "."], "photo-0.png exists already"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_program_refuses(detect, tmp_path, monkeypatch, capsys, case):
    arguments, expected = WRONG[case]
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "photo-0.png"):
        Image.new("RGB", (8, 8)).save(name)
    detector = of(detect, facts())
    monkeypatch.setattr(detect, "Detector", lambda _: detector)
    monkeypatch.setattr(sys, "argv", ["detect.py", "photo.png", *arguments])
    with pytest.raises(SystemExit) as end:
        detect.main()
    assert expected in capsys.readouterr().err + str(end.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo-0.png", "photo.png"]


def test_a_disk_without_space(detect, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    detector = of(detect, facts())
    monkeypatch.setattr(detect, "Detector", lambda _: detector)
    monkeypatch.setattr(sys, "argv", ["detect.py", str(tmp_path / "photo.png"), "--output", str(tmp_path / "found")])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SystemExit) as end:
        detect.main()
    assert end.value.code == f"Error: {tmp_path / 'found' / 'photo.png'} cannot be written: No space left on device"


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
    steps = re.findall(r"^(\d)\. ", text.partition("## Preparing")[2].partition("## ")[0], re.MULTILINE)
    assert steps == [str(number) for number in range(1, len(steps) + 1)]
    assert ("43.2" in text, "CC0" in text, "(2, 3, 64, 96)" in text) == ((case == "fixed"),) * 3
    assert ("detect.py" in text) == (case != "raw")
    assert ("not chosen" in text, "score above 0.05; NMS" in text) == (case == "raw", case != "raw")
    assert ("colour (127.5, 127.5, 127.5)" in text) == (case == "fixed")
    assert "`boxes` (N, R, 4) and `scores` (N, R, 3)" in text


def script_of(page: Path) -> str:
    return page.read_text().rpartition("<script>")[2].partition("</script>")[0]


SIZES = {
    "any size": facts(),
    "held by the fixed size": replace(facts(), size=(96, 128), batch=2, mean=(0.1, 0.2, 0.3)),
    "reduced to the fixed size, in bytes": replace(facts(), size=(40, 48), batch=1, input="uint8"),
}


def test_the_page_prepares_photos_as_the_program(detect, tmp_path):
    if not shutil.which("node"):
        pytest.skip("needs node")
    photo = np.random.default_rng(0).integers(0, 256, (60, 100, 4))
    start, scripts = "guarded(start)();", []
    for stated in SIZES.values():
        write_beside(tmp_path, replace(stated, versions={"understudy": "1.2"}))
        script = script_of(tmp_path / "detect.html")
        assert start in script
        call = f"""const made = prepared({{ width: 100, height: 60, data: {photo.ravel().tolist()} }});
            console.log(JSON.stringify({{ ...made, values: Array.from(made.values) }}));"""
        scripts.append(f"(() => {{ {script.replace(start, call)} }})();")
    (tmp_path / "page.js").write_text("\n".join(scripts))
    said = subprocess.run(["node", tmp_path / "page.js"], check=True, capture_output=True).stdout
    for (case, stated), line in zip(SIZES.items(), said.splitlines(), strict=True):
        made = json.loads(line)
        pixels, scale = of(detect, stated).prepared(photo[:, :, :3].astype(np.float32) / 255)
        assert (made["shape"], made["across"], made["down"]) == (list(pixels.shape), *scale), case
        rounding = 1 if pixels.dtype == np.uint8 else 1e-6  # of bytes, where a value lies between two
        np.testing.assert_allclose(made["values"], pixels.ravel().astype(np.float32), atol=rounding, err_msg=case)


def test_what_is_written(tmp_path):
    stated = replace(facts(), classes=("a", "</script>", "c"), versions={"understudy": "1.2"})
    files = write_beside(tmp_path, stated)
    assert sorted(file.name for file in files) == ["README.md", "detect.html", "detect.py"]
    page = (tmp_path / "detect.html").read_text()
    assert "/*FACTS" not in page
    assert "/*COMMAND" not in page
    assert page.count("</script>") == 2
    script = script_of(tmp_path / "detect.html")
    assert '"\\u003c/script>"' in script
    assert [file.name for file in write_beside(tmp_path, replace(stated, raw=True))] == ["README.md"]
