"""ONNX and OpenVINO files: what is written, that they detect the same, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from exported_files import facts
from PIL import Image

from understudy.checkpoints import load_checkpoint
from understudy.deployment.int8 import Calibration, _in_float, known_ranges
from understudy.deployment.onnx_file import SCOPES
from understudy.errors import RunError, UserError
from understudy.evaluation import evaluate
from understudy.evaluation.models import open_runnable
from understudy.evaluation.prediction import predict
from understudy.evaluation.runtimes import KEY, Facts, FileRuntime, fitted, onnx_runtime, session_of, to_image
from understudy.export import export
from understudy.quantisation import quantised_layers

onnx = pytest.importorskip("onnx", reason="needs onnx, onnxscript and onnxruntime")
pytest.importorskip("onnxscript", reason="needs onnx, onnxscript and onnxruntime")
pytest.importorskip("onnxruntime", reason="needs onnx, onnxscript and onnxruntime")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A student of scenes as an ONNX file of a fixed size and of bytes, and in INT8."""
    folder = tmp_path_factory.mktemp("exported") / "deploy"
    config = json.loads((trained / "result.json").read_text())
    assert config
    data = open_runnable(trained).config["data"]["path"]
    # As of a student that was trained with quantise=true, with ranges that no calibration would find.
    content = torch.load(trained / "best.ckpt", weights_only=True)
    names = quantised_layers(load_checkpoint(trained).detector.network)
    content["understudy"]["quantisation"] = {name: [-1.0, 2.0 + place] for place, name in enumerate(names)}
    torch.save(content, file := folder.parent / "quantised.ckpt")
    export(file, folder, ["onnx", "torch"], size=(64, 96), licence="CC0", int8=data, max_ap_loss=100)
    return folder


@pytest.mark.slow
def test_the_file(exported, trained):
    assert {"student.onnx", "student.int8.onnx", "weights.pt"} <= {path.name for path in exported.iterdir()}
    onnx.checker.check_model(str(exported / "student.onnx"), full_check=True)
    session = session_of(exported / "student.onnx")
    (image,) = session.get_inputs()
    assert (image.name, image.shape, image.type) == ("image", [1, 3, 64, 96], "tensor(float)")
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores", "labels", "count"]
    stated = onnx_runtime(exported / "student.onnx").facts
    loaded = open_runnable(trained)
    assert (stated.classes, stated.category_ids) == (loaded.classes, loaded.category_ids)
    assert (stated.size, stated.batch, stated.licence, stated.precision) == ((64, 96), 1, "CC0", "float32")
    assert onnx_runtime(exported / "student.int8.onnx").facts == replace(stated, precision="int8")
    traces = {each.key for node in onnx.load(exported / "student.onnx").graph.node for each in node.metadata_props}
    assert traces <= {"pkg.torch.onnx.name_scopes"}  # no paths of the machine that wrote it


@pytest.mark.slow
def test_the_file_in_int8_has_the_ranges_of_the_training(exported, trained):
    names = list(quantised_layers(load_checkpoint(trained).detector.network))
    graph = onnx.load(exported / "student.int8.onnx").graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    plain = onnx.load(exported / "student.onnx").graph
    readers = [(node.input[0], node.input[1]) for node in plain.node if node.op_type == "Conv"]
    found = set()
    for tensor, weight in readers:
        layer = weight.removeprefix("network.").removesuffix(".weight")
        alone = sum(tensor == other for other, _ in readers) == 1
        if layer in names and alone:
            found.add(layer)
            assert values[f"{tensor}_scale"] == pytest.approx((3.0 + names.index(layer)) / 255)
            assert values[f"{tensor}_zero_point"] == round(255 / (3.0 + names.index(layer)))
    assert len(found) > 50


@pytest.mark.slow
def test_evaluate_and_predict_take_it(exported, trained, scenes, tmp_path):
    whole, file = (evaluate(each, scenes) for each in (trained, exported / "student.onnx"))
    assert file.coco["AP"] == pytest.approx(whole.coco["AP"], abs=0.02)  # padded to 64 x 96 instead of as it comes
    rows = predict(exported / "student.onnx", scenes, tmp_path / "found")
    assert rows
    assert {row["category"] for row in rows} <= set(onnx_runtime(exported / "student.onnx").facts.classes)
    with pytest.raises(UserError, match="Leave out --precision"):
        evaluate(exported / "student.onnx", scenes, precision="bf16")
    with pytest.raises(UserError, match="No data set to evaluate on"):
        evaluate(exported / "student.onnx")


def test_a_file_that_disagrees_is_not_left(trained, tmp_path, monkeypatch):
    from understudy.deployment import writing

    def wrong(file):
        return FileRuntime(facts(), "wrong", lambda images: _nothing(len(images)))

    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    monkeypatch.setattr(writing, "to_onnx", lambda *_: model)
    monkeypatch.setattr(writing, "onnx_runtime", wrong)
    with pytest.raises(RunError, match="does not detect the same as the detector in PyTorch, so the file was removed"):
        export(trained, tmp_path / "deploy", ["onnx"])
    assert not (tmp_path / "deploy").exists()


def _nothing(images: int) -> list[np.ndarray]:
    return [
        np.zeros((images, 100, 4), np.float32),
        np.zeros((images, 100), np.float32),
        np.zeros((images, 100), np.int64),
        np.zeros(images, np.int64),
    ]


def test_all_wrong_options_at_once(trained, tmp_path):
    with pytest.raises(UserError) as error:
        export(trained, tmp_path / "deploy", ["onnx"], size=(16, 96), batch=0, opset=9, score_threshold=2)
    assert str(error.value).splitlines()[1:] == [
        "  - --size 16x96: expected a height and a width of at least 32 pixels",
        "  - --batch 0: expected at least 1",
        "  - --opset 9: expected 18 to 25",
        "  - --score-threshold 2: expected a number between 0 and 1",
    ]
    with pytest.raises(UserError, match="--format: expected one or several of torch, onnx, openvino, got tflite"):
        export(trained, tmp_path / "deploy", ["tflite"])  # ty: ignore[invalid-argument-type]
    with pytest.raises(UserError, match="--int8 quantises an ONNX file"):
        export(trained, tmp_path / "deploy", ["torch"], int8=tmp_path)
    assert not (tmp_path / "deploy").exists()


def _written(file, metadata: str | None):
    """An ONNX file that returns its input."""
    value = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])
    result = onnx.helper.make_tensor_value_info("boxes", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])
    node = onnx.helper.make_node("Identity", ["image"], ["boxes"])
    graph = onnx.helper.make_graph([node], "identity", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    if metadata is not None:
        onnx.helper.set_model_props(model, {KEY: metadata})
    onnx.save(model, str(file))
    return file


def test_files_that_are_not_ours(tmp_path, scenes):
    cases = {
        "another program's": (_written(tmp_path / "a.onnx", None), "was not exported by understudy"),
        "damaged": (_written(tmp_path / "b.onnx", "{}"), "are damaged \\(KeyError"),
        "raw": (_written(tmp_path / "c.onnx", replace(facts(), raw=True).to_json()), "Export it without --raw"),
        "of a later version": (_written(tmp_path / "d.onnx", replace(facts(), format=9).to_json()), "later version"),
        "no ONNX at all": (tmp_path / "e.onnx", "cannot be loaded by ONNX Runtime"),
        "absent": (tmp_path / "f.onnx", "does not exist"),
    }
    (tmp_path / "e.onnx").write_bytes(b"text")
    for name, (file, message) in cases.items():
        with pytest.raises(UserError, match=message):
            evaluate(file, scenes)
        assert name


def test_a_missing_package(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"The package onnxscript, .* Install it: pip install 'understudy\[onnx\]'"):
        export(trained, tmp_path / "deploy", ["onnx"])


def test_facts_survive():
    assert Facts.read(facts().to_json(), __import__("pathlib").Path("x.onnx")) == facts()


def test_an_image_on_a_canvas_and_back():
    image = torch.rand(3, 20, 30)
    canvas, size = fitted(image, (32, 40), (0.5, 0.25, 0.75))
    assert size == (20, 30)
    assert torch.equal(canvas[:, :20, :30], image)
    assert torch.equal(canvas[:, 25, 35], torch.tensor([0.5, 0.25, 0.75]))
    canvas, size = fitted(torch.rand(3, 100, 60), (50, 50), (0.0, 0.0, 0.0))
    assert size == (50, 30)
    found = {"boxes": torch.tensor([[0.0, 0.0, 40.0, 50.0]])}
    assert to_image(found, (50, 30), (100, 60))["boxes"].tolist() == [[0.0, 0.0, 60.0, 100.0]]


def test_images_of_several_sizes_are_run_one_by_one(caplog):
    seen = []

    def infer(images: np.ndarray) -> list[np.ndarray]:
        seen.append(images.shape)
        return _nothing(len(images))

    runtime = FileRuntime(facts(), "counting", infer)
    runtime(torch.rand(2, 3, 64, 96), [(60, 90), (60, 90)])
    runtime(torch.rand(2, 3, 64, 96), [(60, 90), (64, 70)])
    assert seen == [(2, 3, 60, 90), (1, 3, 60, 90), (1, 3, 64, 70)]
    fixed = FileRuntime(replace(facts(), size=(32, 32), batch=2, input="uint8"), "counting", infer)
    assert len(fixed(torch.rand(3, 3, 64, 96), [(64, 96)] * 3)) == 3
    assert seen[3:] == [(2, 3, 32, 32)] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "Images larger than the fixed size of the file, 32x32 (height x width), are reduced to fit, such as one of "
        "64x96. Export with a larger --size, or without it for images of any size."
    ]


def test_layers_are_found_by_either_kind_of_name():
    """Those of a Faster R-CNN's second stage are called apart from the detector, and have other scopes."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["image", "network.stem.weight"], ["a"], name="stem"),
        helper.make_node("Gemm", ["a", "detector.network.head.fc6.weight"], ["b"], name="fc6"),
        helper.make_node("Gemm", ["b", "detector.network.head.cls_score.weight"], ["c"], name="cls_score"),
        helper.make_node("Mul", ["c", "c"], ["d"], name="outside"),
    ]
    scopes = ("detector.network.stem", "network.head.fc6", "network.head.cls_score", "kept")
    for node, scope in zip(nodes, scopes, strict=True):
        node.metadata_props.add(key=SCOPES, value=str(["", scope]))
    model = helper.make_model(helper.make_graph(nodes, "graph", [], []))
    assert _in_float(model) == ["cls_score", "outside"]
    ranges = {"stem": [0.0, 1.0], "head.fc6": [-2.0, 3.0], "other": [0.0, 9.0]}
    assert known_ranges(model, ranges) == {"image": (0.0, 1.0), "a": (-2.0, 3.0)}


def test_a_file_that_loses_too_much_is_removed(trained, scenes, tmp_path, monkeypatch):
    calibration = Calibration.of(load_checkpoint(trained), scenes, 2, limit=1.5)
    monkeypatch.setattr("understudy.deployment.int8.Calibration.ap", lambda *_: 41.0)
    for name in ("kept.onnx", "lost.xml", "lost.bin"):
        (tmp_path / name).touch()
    assert calibration.checked(tmp_path / "kept.onnx", 42.4) == "AP 42.4 in float32, 41.0 in INT8"
    with pytest.raises(RunError, match=r"INT8 costs 1.6 AP, more than --max-ap-loss 1.5, so lost.xml was removed"):
        calibration.checked(tmp_path / "lost.xml", 42.6)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.onnx"]


def test_photos_to_calibrate_on(trained, scenes, tmp_path):
    """A data set of other classes, and one without photos for training."""
    checkpoint = load_checkpoint(trained)
    for name, classes, message in (
        ("other", ["zebra"], "cannot be used on this data set"),
        ("empty", checkpoint.classes, "no images"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (9, 9)).save(folder / "a.png")
        content = {
            "categories": [{"id": number, "name": each} for number, each in enumerate(classes, start=1)],
            "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}][: name == "other"],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}][: name == "other"],
        }
        for split in ("train", "val"):
            (folder / f"instances_{split}.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            Calibration.of(checkpoint, folder, 4)
    assert len(Calibration.of(checkpoint, scenes, 4).photos) == 4
