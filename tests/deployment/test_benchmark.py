"""The benchmark of made-up files, and of a real one beside its checkpoint."""

import csv
import io
import json
import subprocess

import fake_files
import pytest
import torch
from rich.console import Console

from understudy.compare import speed as of_rows
from understudy.compare.rows import Row
from understudy.compare.runs import read_runs
from understudy.compare.table import summarise
from understudy.deployment import benchmark as module
from understudy.deployment import competitors
from understudy.deployment.benchmark import benchmark
from understudy.deployment.memory import peak_memory
from understudy.deployment.sizes import Sizes, sizes_of
from understudy.errors import UserError
from understudy.evaluation import speed
from understudy.evaluation.models import open_runnable
from understudy.export import export
from understudy.report.benchmark import report_on_benchmark

SIZES = Sizes(2_000_000, 300_000_000, 5_000_000)


@pytest.fixture
def files(tmp_path, scenes, monkeypatch):
    """Two files, of which the second is three times as slow and has a fixed size, and the classes of the scenes."""
    from understudy.data import open_data

    data = open_data(scenes)
    known = {"classes": data.classes, "category_ids": data.category_ids}
    fixed = {"size": (64, 64), "batch": 1, "input": "uint8", "precision": "int8"}

    def opened(path, *_, **__):
        slow = path.name == "slow.onnx"
        return fake_files.runnable(path, 0.003 if slow else 0.001, **known, **(fixed if slow else {}))

    monkeypatch.setattr(competitors, "open_runnable", opened)
    monkeypatch.setattr(speed, "PAUSE", 0)
    monkeypatch.setattr(module, "sizes_of", lambda *_: SIZES)
    monkeypatch.setattr(module, "peak_memory", lambda *_: 12_000_000)
    return [tmp_path / "fast.onnx", tmp_path / "slow.onnx"]


def test_files_are_timed_evaluated_and_written(files, scenes, tmp_path):
    threads = torch.get_num_threads()
    lines = []
    result = benchmark(files, scenes, batch=2, threads=2, seconds=0.1, say=lines.append)
    assert torch.get_num_threads() == threads
    assert len(lines) == 3

    known = result.to_dict()
    assert json.loads(json.dumps(known)) == known
    assert known["threads"] == 2
    fast, slow = known["rows"]
    assert (fast["name"], slow["runtime"]) == ("fast.onnx", "Fake 1.0 (CPU), int8")
    assert 0 <= fast["AP"] < fast["AP50"] + 1e-9
    one, two = fast["speed"]
    assert (one["batch"], two["batch"], one["ratio"]) == (1, 2, 1)
    assert 1 < one["p25_ms"] <= one["p50_ms"] <= one["p75_ms"]
    assert two["p50_ms"] > 2
    assert slow["speed"][0]["ratio"] < 0.7
    assert set(slow["speed"][1].values()) == {2, None}
    note = "slow.onnx was not timed with 2 images at a time: it was exported for 1."
    assert any(each.startswith(note) for each in known["notes"])

    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [(row["name"], row["batch"]) for row in rows] == [(f"{n}.onnx", b) for n in ("fast", "slow") for b in "12"]
    assert float(rows[0]["p50_ms"]) == one["p50_ms"]

    page = report_on_benchmark(tmp_path / "page.html", result)
    text = page.read_text()
    assert "Fastest for one image: fast.onnx" in text
    assert "milliseconds for one image" in text
    assert "2 images at a time" in text
    with pytest.raises(UserError, match="exists and is not overwritten"):
        report_on_benchmark(page, result)


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_terminal(files, scenes, width):
    result = benchmark(files, scenes, seconds=0, measure_ap=False)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(result)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "1.00 x" in text
    assert "AP was not measured" in " ".join(text.split())
    assert " AP " not in text.splitlines()[1]
    # four images and three rounds are too few for a 95th percentile, and the note says so
    assert result.to_dict()["rows"][0]["speed"][0]["p95_ms"] is None
    assert "p95 needs 20 of them" in " ".join(text.split())


def test_ratios_are_left_out_if_the_first_cannot_take_a_batch(files, scenes):
    result = benchmark(files[::-1], scenes, batch=2, seconds=0, measure_ap=False)
    fast = result.to_dict()["rows"][1]
    assert fast["speed"][0]["ratio"] > 1
    assert fast["speed"][1]["images_per_second"] > 0
    assert fast["speed"][1]["ratio"] is None


def test_without_a_gpu_cuda_is_refused(files, scenes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: PyTorch finds no GPU"):
        benchmark(files, scenes, device="cuda")


# ------------------------------------------------------------------------------------------------- a real file


@pytest.fixture(scope="module")
def real(trained, tmp_path_factory):
    """A tiny run, and the ONNX file and the OpenVINO file exported from it."""
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    folder = export(trained, tmp_path_factory.mktemp("exported") / "it", ["onnx", "openvino"], size=(64, 64))
    return trained, folder / "student.onnx", folder / "student.xml"


@pytest.mark.slow
def test_a_real_file_has_the_numbers_of_its_checkpoint(real, monkeypatch):
    monkeypatch.setattr(module, "peak_memory", lambda *_: None)  # a test of its own
    result = benchmark(real, libraries=["onnxruntime", "openvino"], seconds=0)
    run, *files = result.rows
    assert [row.runtime.split()[0] for row in result.rows] == ["PyTorch", "ONNX", "OpenVINO", "OpenVINO"]
    assert run.AP is not None
    assert run.AP > 0
    for file in files:
        assert file.AP is not None
        assert abs(file.AP - run.AP) < 1e-3
        assert file.sizes.multiply_adds == run.sizes.multiply_adds
        assert 0.9 * run.sizes.parameters < file.sizes.parameters < run.sizes.parameters
        assert file.speeds[1].images_per_second > 0
    weights = real[2].with_suffix(".bin")
    assert files[-1].sizes.file_bytes == real[2].stat().st_size + weights.stat().st_size


@pytest.mark.slow
def test_sizes_without_the_package_that_counts_have_a_reason(real, monkeypatch):
    from understudy.deployment import sizes

    def needed(name, purpose):
        raise UserError(f"The package {name}, which {purpose} needs, cannot be imported.")

    monkeypatch.setattr(sizes, "needed", needed)
    detector = open_runnable(real[1], "cpu")
    image = torch.rand(1, 3, 64, 64)
    batch = competitors.Batch(image, [{}], [(64, 64)], [(64, 64)], [0], [True])
    found = sizes_of(detector, batch)
    assert (found.parameters, found.multiply_adds) == (None, None)
    assert found.file_bytes == real[1].stat().st_size
    assert "The package onnx, which counting" in found.missing
    assert sizes.parameters_of_file(real[1]) is None


@pytest.mark.slow
def test_peak_memory_is_that_of_a_fresh_process(real):
    image = torch.rand(1, 3, 64, 64).numpy()
    found = peak_memory(real[1], "onnxruntime", 1, image, (64, 64))
    assert found is not None
    assert 1_000_000 < found < 500_000_000  # megabytes: not the libraries, which take more


def test_peak_memory_of_a_failed_process_is_not_known(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "12345\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert peak_memory(tmp_path / "a.onnx", "onnxruntime", 1, torch.rand(1, 3, 4, 4).numpy(), (4, 4)) is None


@pytest.mark.slow
def test_compare_takes_exported_files_beside_runs(real, monkeypatch):
    monkeypatch.setitem(speed.race.__kwdefaults__, "rounds", 3)
    run, file, _ = real
    table = summarise([run, file], device="cpu")
    plain, exported = table.rows
    assert [(row.name, row.role) for row in table.rows] == [("plain", "plain"), ("student.onnx", "exported")]
    assert exported.mean() == pytest.approx(plain.mean(), abs=1e-3)
    assert exported.images_per_second > 0
    assert exported.to_dict()["runtime"].startswith("ONNX Runtime ")
    assert any(f"{file} is run by ONNX Runtime" in note for note in table.notes)
    assert "PyTorch and the runtimes of the files" in table.speed


def test_a_file_of_several_images_is_not_timed_with_one_in_a_comparison(tmp_path, monkeypatch, trained):
    (run,) = read_runs([trained])
    rows = [Row("plain", "plain", (run,)), Row("student.onnx", "exported", (run,))]
    opened = iter(
        [open_runnable(trained, "cpu"), fake_files.runnable(tmp_path / "student.onnx", size=(64, 64), batch=8)]
    )
    monkeypatch.setattr(of_rows, "open_runnable", lambda *_: next(opened))
    monkeypatch.setitem(speed.race.__kwdefaults__, "rounds", 3)
    timed, how = of_rows.with_speeds(rows, torch.device("cpu"))
    assert timed[0].images_per_second > 0
    assert timed[1].images_per_second is None
    assert how.endswith("Not timed, since they do not take single images: student.onnx.")
