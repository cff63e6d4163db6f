"""What can be compared: faults, all at once; names; the data set."""

from pathlib import Path

import fake_files
import pytest
import torch

from understudy.data import Batch, open_data
from understudy.deployment import competitors
from understudy.deployment.competitors import check_classes, open_competitors, open_data_of, repeated
from understudy.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def opened(monkeypatch):
    """Opens any file, and lists how."""
    calls = []

    def open_runnable(path, device, threads, library):
        calls.append((path.name, threads, library))
        return fake_files.runnable(path)

    monkeypatch.setattr(competitors, "open_runnable", open_runnable)
    return calls


def test_an_onnx_file_runs_once_by_each_library(tmp_path, opened):
    paths = [tmp_path / "a.onnx", tmp_path / "a.xml"]
    found = open_competitors(paths, ["openvino", "onnxruntime"], 3, CPU)
    assert [each.name for each in found] == ["a.onnx (ONNX Runtime)", "a.onnx (OpenVINO)", "a.xml"]
    assert opened == [("a.onnx", 3, "onnxruntime"), ("a.onnx", 3, "openvino"), ("a.xml", 3, "openvino")]
    assert [each.name for each in open_competitors(paths[:1], [], 1, CPU)] == ["a.onnx"]


def test_names_are_told_apart_by_their_folders(tmp_path, opened):
    paths = [tmp_path / "one/student.onnx", tmp_path / "two/student.onnx", tmp_path / "three/other.onnx"]
    assert [each.name for each in open_competitors(paths, [], 1, CPU)] == [
        "one/student.onnx",
        "two/student.onnx",
        "other.onnx",
    ]


def test_all_faults_are_listed_at_once(tmp_path, monkeypatch):
    missing, foreign = tmp_path / "missing.xml", tmp_path / "run"
    foreign.mkdir()

    def open_runnable(path, device, threads, library):
        raise UserError("The package openvino is missing. Install it: pip install x" if path == missing else "\nNo.")

    monkeypatch.setattr(competitors, "open_runnable", open_runnable)
    with pytest.raises(UserError) as error:
        open_competitors([missing, foreign, foreign], ["onnx_runtime"], 1, CPU)
    assert str(error.value).splitlines() == [
        "These detectors cannot be compared:",
        f"  - {foreign} is given twice",
        "  - --runtime: expected onnxruntime or openvino, got onnx_runtime; did you mean onnxruntime?",
        "  - --runtime onnx_runtime: there is no .onnx file to run; leave it out",
        "  - The package openvino is missing. Install it: pip install x",
        f"  - {foreign}: No.",
    ]
    with pytest.raises(UserError, match="No detectors to compare"):
        open_competitors([], [], 1, CPU)


def test_real_files_that_do_not_fit_are_named(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "foreign.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError) as error:
        open_competitors([tmp_path / "foreign.onnx", tmp_path / "gone.onnx", tmp_path / "gone"], [], 1, CPU)
    said = str(error.value)
    assert "foreign.onnx cannot be loaded by ONNX Runtime" in said
    assert "gone.onnx does not exist" in said
    assert len(said.splitlines()) == 4


def test_files_alone_need_a_data_set(tmp_path, opened):
    found = open_competitors([tmp_path / "a.onnx"], [], 1, CPU)
    with pytest.raises(UserError, match=r"No data set: none of a\.onnx names .* Give one: --data DATA"):
        open_data_of(found, None, None)


def test_detectors_without_a_common_class_are_named(tmp_path, scenes, monkeypatch):
    monkeypatch.setattr(
        competitors, "open_runnable", lambda path, *_, **__: fake_files.runnable(path, classes=(path.stem, "zebra"))
    )
    found = open_competitors([tmp_path / "lion.onnx", tmp_path / "tiger.onnx"], [], 1, CPU)
    with pytest.raises(UserError) as error:
        check_classes(found, open_data(scenes), {})
    assert "the lion.onnx has lion, zebra" in str(error.value)
    assert "the tiger.onnx has tiger, zebra" in str(error.value)


def test_a_batch_has_one_image_several_times():
    image = torch.rand(1, 3, 4, 4)
    batch = repeated(Batch(image, [{}], [(3, 4)], [(6, 8)], [7], [True]), 3)
    assert torch.equal(batch.images, image.expand(3, -1, -1, -1))
    assert (batch.image_sizes, batch.image_ids) == ([(3, 4)] * 3, [7] * 3)


def test_paths_are_compared_as_they_resolve(tmp_path, opened):
    with pytest.raises(UserError, match="is given twice"):
        open_competitors([tmp_path / "a.onnx", Path(tmp_path / "x/../a.onnx")], [], 1, CPU)
