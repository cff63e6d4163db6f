"""The report: what it reads, what it computes, what it draws and what it says."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from understudy.data import open_data
from understudy.data.scenes import SCENE_CLASSES, make_scenes, read_unlabelled
from understudy.errors import UserError
from understudy.outputs import Outputs, Spec
from understudy.report import figures, page, report_on, views
from understudy.report.views import Boxes, ExampleView, RichnessView, RunView


def run_view(name, role, ap=None, group=None, **others):
    result = {"per_class": {"cat": ap, "dog": 0.2, "owl": None}, "epoch": 3, "train_seconds": 75.4}
    return RunView(name, group or name, role, Path(name), result=result, config={"seed": 0}, **others)


def table_of(*rows, notes=()):
    """A comparison as understudy.results makes it, from (name, role, AP) and what else is to be different."""
    usual = {"detector": "fcos_mobilenet_v2", "seeds": [0], "AP50": 0.5, "AP75": None, "AP_spread": None}
    usual |= {"parameters": 2_500_000, "images_per_second": None, "speed_ratio": None, "gap_closed": None}
    filled = [
        usual | {"name": name, "role": role, "AP": ap, "folders": [name]} | (more[0] if more else {})
        for name, role, ap, *more in rows
    ]
    return {"rows": filled, "notes": list(notes), "speed": None}


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


# --- what the page says -----------------------------------------------------------------------------------------------


def test_verdict_says_that_distillation_helped_and_how_much_of_the_gap_it_closed():
    (said,) = page.verdict(
        table_of(("t", "teacher", 0.5), ("p", "plain", 0.3), ("frs", "distilled", 0.35, {"gap_closed": 0.25}))
    )
    assert "frs helped: AP 35.0 against 30.0 of the same student" in said
    assert "(+5.0)" in said
    assert "25% of what the teacher was ahead" in said


def test_verdict_says_in_plain_words_that_distillation_did_not_help():
    (said,) = page.verdict(
        table_of(("t", "teacher", 0.5), ("p", "plain", 0.3), ("frs", "distilled", 0.28, {"gap_closed": -0.1}))
    )
    assert "did not help" in said
    assert "worse" in said
    assert "(-2.0)" in said
    assert "helped:" not in said
    assert "ahead" not in said


def test_verdict_calls_a_difference_that_rounds_to_nothing_none():
    (said,) = page.verdict(table_of(("p", "plain", 0.3001), ("frs", "distilled", 0.3003)))
    assert "made no difference" in said


def test_verdict_holds_every_method_against_the_best_plain_student_of_its_detector():
    said = page.verdict(
        table_of(
            ("p1", "plain", 0.2),
            ("p2", "plain", 0.3, {"folders": ["a", "b"]}),
            ("other", "plain", 0.9, {"detector": "fcos_resnet50"}),
            ("wide", "plain", 0.9, {"parameters": 9_000_000}),
            ("frs", "distilled", 0.25),
            ("hint", "distilled", 0.35),
        )
    )
    assert len(said) == 2
    assert "frs did not help here" in said[0]
    assert "against 30.0 on average over 2 runs" in said[0]
    assert "hint helped" in said[1]


def test_verdict_without_a_plain_or_without_a_distilled_run_claims_nothing():
    assert "cannot be said" in page.verdict(table_of(("frs", "distilled", 0.3)))[0]
    assert "no distilled student" in page.verdict(table_of(("p", "plain", 0.3)))[0]
    assert "no distilled student" in page.verdict(table_of(("frs", "distilled", None)))[0]


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def example():
    truth = Boxes(np.array([[4.0, 4, 20, 20]]), ("cat",))
    found = Boxes(np.array([[5.0, 4, 20, 20], [30, 30, 40, 44]]), ("cat", "dog"), (0.9, 0.4))
    image = np.full((48, 64, 3), 120, dtype=np.uint8)
    return ExampleView(image, truth, np.array([[40.0, 4, 60, 20]]), {"teacher": found}, 0.3)


@pytest.fixture
def richness():
    fine, coarse = np.zeros((6, 8)), np.full((3, 4), 0.1)
    fine[1, 1], fine[1, 6] = 0.9, 0.3
    boxes, unlabelled = np.array([[8.0, 8, 16, 16]]), np.array([[48.0, 8, 56, 16]])
    return RichnessView(np.full((48, 64, 3), 120, dtype=np.uint8), boxes, unlabelled, (fine, coarse), (8, 16))


def test_page_is_one_file_that_needs_no_other(tmp_path, example, richness):
    metrics = {"epoch": np.arange(3.0), "AP": np.array([0.1, float("nan"), 0.2])}
    losses = {"epoch": np.zeros(9), "step": np.arange(9.0), "lr": np.zeros(9), "total": np.arange(9.0)}
    versions = {"command": "understudy demo", "packages": {"torch": "2.13"}, "gpus": []}
    runs = [
        run_view("teacher", "teacher", 0.5, metrics=metrics, losses=losses, config_text="seed: 0"),
        run_view("plain", "plain", 0.3, metrics=metrics, losses=losses, environment=versions),
        run_view("frs", "distilled", 0.28, losses=losses | {"frs_feature": np.ones(9)}, environment=versions),
    ]
    table = table_of(
        ("teacher", "teacher", 0.5),
        ("plain", "plain", 0.3),
        ("frs", "distilled", 0.28, {"gap_closed": -0.1}),
        notes=["A note & more."],
    )
    file = tmp_path / "new" / "page.html"
    facts = {"seeds": [0, 1], "odd": "<i>&"}
    page.write_report(file, runs, title="A <b> page", facts=facts, table=table, examples=[example], richness=[richness])
    html = file.read_text(encoding="utf-8")
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]+)"', html))
    assert len(re.findall(r"<img", html)) == 2 + 4
    assert "<script" not in html
    assert "<link" not in html
    assert not re.findall(r'(?:href|url)[=(]"?(?!#|[^"]*\.dtd)https?:', html)
    assert "A &lt;b&gt; page" in html
    assert "&lt;i&gt;&amp;" in html
    assert html.count("<svg") == 2
    for words in (
        "did not help",
        "A note &amp; more.",
        "packages: torch",
        "1 of 1 found, 1 wrong",
        "1 min 15 s",
        "-10%",
    ):
        assert words in html
    assert html.count("understudy demo") == 1
    assert "images per second" not in html  # nobody has a value for it
    assert "gpus" not in html
    assert "prefers-color-scheme: dark" in html
    assert figures.INK not in html


def test_page_of_runs_that_have_nothing_to_show(tmp_path):
    run = RunView("young", "young", "plain", Path("young"), result={})
    table = table_of(("young", "plain", None))
    page.write_report(tmp_path / "page.html", [run], title="Young", facts={}, table=table)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "young" in html
    assert "<svg" not in html
    assert "<img" not in html


def test_best_student_of_a_class_is_marked_and_never_the_teacher():
    runs = [run_view("t", "teacher", 0.5)]
    runs += [run_view(f"p{seed}", "plain", ap, group="p") for seed, ap in enumerate((0.2, 0.6))]
    runs += [run_view("d", "distilled", 0.3)]
    classes = page._class_table(runs)
    assert classes["columns"] == ["t", "p", "d"]
    cat, dog, owl = classes["rows"]
    assert [cell["text"] for cell in cat["cells"]] == ["50.0", "40.0", "30.0"]
    assert [cell["best"] for cell in cat["cells"]] == [False, True, False]
    assert [cell["best"] for cell in dog["cells"]] == [False, True, True]
    assert [cell["text"] for cell in owl["cells"]] == ["-", "-", "-"]


def test_runs_of_one_group_share_a_colour_and_groups_do_not():
    runs = [run_view("a", "plain", group="x"), run_view("b", "plain", group="x"), run_view("c", "plain")]
    colours = page._group_colours([*runs, run_view("t", "teacher"), run_view("d", "distilled")])
    assert list(colours) == ["x", "c", "t", "d"]
    assert len(set(colours.values())) == 4


# --- figures ----------------------------------------------------------------------------------------------------------


def test_curves_begin_at_zero_and_leave_gaps():
    curve = figures.Curve("plain", "#2b8cd6", np.arange(3.0), np.array([30.0, float("nan"), 32.0]))
    axes = figures.curve_chart([curve], x_label="epoch", y_label="AP").axes[0]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] >= 32
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain"]


def test_loss_axes_begin_at_zero_and_say_when_first_values_are_cut_off():
    spiked = np.concatenate([[100.0], np.ones(99)])
    terms = {
        "total": [figures.Curve("a", "#2b8cd6", np.arange(100.0), spiked)],
        "calm": [figures.Curve("a", "#2b8cd6", np.arange(100.0), np.linspace(2, 1, 100))],
    }
    spiky, calm = figures.loss_charts(terms).axes
    assert spiky.get_ylim()[0] == calm.get_ylim()[0] == 0
    assert spiky.get_ylim()[1] < 5
    assert "above the frame" in spiky.get_title(loc="left")
    assert calm.get_ylim()[1] > 2
    assert calm.get_title(loc="left") == "calm"


def test_running_mean_of_a_line_is_the_line_and_short_curves_are_left_alone():
    line = np.linspace(0, 1, 201)
    np.testing.assert_allclose(figures.running_mean(line)[5:-5], line[5:-5])
    assert figures.running_mean(line[:20]) is not None
    np.testing.assert_array_equal(figures.running_mean(line[:20]), line[:20])


def test_picture_has_the_asked_width_and_draws_the_box_where_it_is():
    image = np.zeros((50, 100, 3), dtype=np.uint8)
    drawn = pixels(figures.detection_picture(image, np.array([[10.0, 20, 60, 40]]), [""], ["#ff0000"], width=400))
    assert drawn.shape == (200, 400, 3)
    red = (drawn[..., 0] > 150) & (drawn[..., 1] < 100)
    rows, columns = np.nonzero(red)
    assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx([40, 80, 240, 160], abs=2)


def test_captions_stay_within_the_picture():
    image = np.zeros((50, 50, 3), dtype=np.uint8)
    boxes = np.array([[0.0, 0, 50, 50], [45, 45, 50, 50]])
    figure = figures.detection_picture(image, boxes, ["crescent 0.99"] * 2, ["#ffb000"] * 2, width=300)
    FigureCanvasAgg(figure).draw()
    for text in figure.axes[0].texts:
        extent = text.get_window_extent()
        assert extent.x0 >= 0
        assert extent.y0 >= -3
        assert extent.x1 <= 300
        assert extent.y1 <= 303


def test_heat_is_brightest_at_its_cell():
    image = np.zeros((32, 64, 3), dtype=np.uint8)
    heat = np.zeros((4, 8))
    heat[1, 6] = 0.5
    drawn = pixels(
        figures.heat_picture(image, heat, 8, boxes=np.zeros((0, 4)), dashed_boxes=np.zeros((0, 4)), width=128)
    ).sum(2)
    assert drawn.shape == (64, 128)
    bright = drawn > 0.8 * drawn.max()
    rows, columns = np.nonzero(bright)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx([96, 16, 112, 32], abs=1)


def test_level_that_sees_nothing_is_not_drawn_bright():
    image, nothing = np.zeros((32, 64, 3), dtype=np.uint8), np.zeros((0, 4))
    faint, strong = (
        pixels(figures.heat_picture(image, np.full((4, 8), value), 8, boxes=nothing, dashed_boxes=nothing)).mean()
        for value in (0.02, 0.9)
    )
    assert faint < 0.4 * strong


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_second_box_on_an_object_and_a_wrong_class_are_wrong():
    truth = Boxes(np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]]), ("cat", "dog"))
    box = [0.0, 0, 10, 9]
    found = Boxes(
        np.array([box, box, [20, 20, 30, 30], [0, 0, 10, 4]]), ("cat", "cat", "cat", "dog"), (0.9, 0.8, 0.7, 0.6)
    )
    assert views.count_right(found, truth) == 1
    assert views.count_right(Boxes(np.zeros((0, 4)), ()), truth) == 0


def test_share_of_richness_outside_the_boxes(richness):
    assert views.share_outside(richness, 0) == pytest.approx(0.3 / 1.2)
    assert views.share_outside(richness, 1) == pytest.approx(47 / 48)


def test_mean_richness_by_place(richness):
    places = views.richness_by_place([richness])
    assert places["labelled objects"] == pytest.approx(0.9)
    assert places["unlabelled look-alikes"] == pytest.approx(0.3)
    assert places["elsewhere"] == pytest.approx(0.1)
    without = dataclasses.replace(richness, unlabelled=np.zeros((0, 4)))
    assert "unlabelled look-alikes" not in views.richness_by_place([without])


# --- run folders, checkpoints and data --------------------------------------------------------------------------------


def run_folder(folder, **config):
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return folder


def test_run_folders_are_read_under_the_names_of_the_comparison(tmp_path):
    folders = [run_folder(tmp_path / name, seed=seed) for seed, name in enumerate(("star", "one", "two"))]
    table = table_of(
        ("teacher", "teacher", 0.5, {"folders": [str(folders[0])]}),
        ("plain", "plain", 0.2, {"folders": [str(folder) for folder in folders[1:]], "seeds": [1, 2]}),
    )
    (folders[1] / "losses.csv").write_text("epoch,step,lr,total,frs_feature\n0,10,0.1,2.5,\n0,20,0.1,2.0,0.5\n")
    (folders[1] / "result.json").write_text(json.dumps({"per_class": {"cat": 0.5}}))
    runs = views.view_runs(table)
    assert [run.name for run in runs] == ["teacher", "plain, seed 1", "plain, seed 2"]
    assert [run.group for run in runs] == ["teacher", "plain", "plain"]
    assert [run.role for run in runs] == ["teacher", "plain", "plain"]
    assert [run.name for run in views.one_of_each_role(runs)] == ["teacher", "plain, seed 1"]
    assert runs[1].config == {"seed": 1}
    assert runs[1].loss_terms == ["total", "frs_feature"]
    assert runs[1].result["per_class"] == {"cat": 0.5}
    np.testing.assert_array_equal(runs[1].losses["frs_feature"], [np.nan, 0.5])
    assert runs[2].losses == runs[2].environment == {}


def test_losses_of_a_distilled_run_raw_and_weighted(tmp_path):
    losses = {
        "epoch": np.array([0.5, 1.0, 1.5, 2.0]),
        "step": np.arange(4.0),
        "total": np.arange(4.0),
        "classification": np.array([4.0, 2, 2, 1]),
        "frs_feature": np.array([np.nan, 300, 200, 100]),
        "distillation_share": np.array([0.5, np.nan, np.nan, np.nan]),
        "frs_feature_weight": np.array([0, 0.01, 0.02, 0.02]),
    }
    run = run_view("frs", "distilled", 0.4, losses=losses)
    assert run.loss_terms == ["total", "classification", "frs_feature", "distillation_share"]
    assert [(term.name, term.first, term.last, term.weight) for term in run.terms] == [
        ("classification", 3.0, 1.5, None),
        ("frs_feature", 300.0, 150.0, 0.02),
    ]
    assert [term.weighted for term in run.terms] == [1.5, 3.0]
    page.write_report(
        tmp_path / "page.html",
        [run],
        title="t",
        facts={},
        table=table_of(("frs", "distilled", 0.4)),
    )
    html = (tmp_path / "page.html").read_text()
    assert "how large its losses are" in html
    assert "<tr><th>frs_feature</th><td>300</td><td>150</td><td>0.02</td><td>3</td></tr>" in html
    del losses["frs_feature_weight"]
    assert run_view("plain", "plain", 0.3, losses=losses).terms == []


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        views.view_run(tmp_path, name="x", group="x", role="plain")


class FakeDetector:
    """Sees one box, a quarter of the image, twice; its only level is rich in the upper left cell of every image."""

    spec = Spec(channels=(1,), strides=(16,), num_anchors=1, num_classes=5)

    def to(self, device):
        return self

    def eval(self):
        return self

    def __call__(self, images, image_sizes):
        count, _, height, width = images.shape
        logits = torch.full((count, height // 16, width // 16, 1, 5), -20.0)
        logits[:, 0, 0, 0, 2] = 20.0
        return Outputs([], [], [logits], [], [])

    def detect(self, outputs, image_sizes):
        height, width = image_sizes[0]
        box = torch.tensor([0, 0, width / 2, height / 2])
        scores, labels = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
        return [{"boxes": box.repeat(3, 1), "scores": scores, "labels": labels}]


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """Data of 72 pixels, and checkpoints that are evaluated at 72 pixels, or at 144 where the run is called large."""

    def load(folder):
        side = 144 if folder.name == "large" else 72
        config = {"data": {"shorter_side": [32, side], "longer_side": 200}}
        return SimpleNamespace(detector=FakeDetector(), classes=SCENE_CLASSES, config=config)

    monkeypatch.setattr(views, "load_checkpoint", load)
    return open_data(make_scenes(tmp_path / "scenes", train=1, val=8, size=72, seed=0), "val")


def test_examples_are_the_first_images_and_all_boxes_are_in_the_shown_frame(scenes):
    runs = [RunView(name, name, "plain", Path(name), result={}) for name in ("small", "large")]
    examples = views.view_examples(runs, scenes, count=2)
    assert len(examples) == 2
    assert examples[0].image.shape == (72, 72, 3)
    assert 20 < examples[0].image.mean() < 235
    np.testing.assert_allclose(examples[0].truth.boxes, scenes.records[0].boxes.numpy())
    assert set(examples[0].truth.names) <= set(SCENE_CLASSES)
    for found in examples[1].detections.values():
        assert found.scores == pytest.approx((0.9, 0.5))
        assert found.names == ("cross", "ring")
        np.testing.assert_allclose(found.boxes, [[0, 0, 36, 36]] * 2)


def test_richness_is_shown_where_there_are_unlabelled_objects_and_cut_to_the_image(scenes):
    unlabelled = read_unlabelled(scenes.source)
    assert 0 < len(unlabelled) < 8
    found = views.view_richness(RunView("t", "t", "teacher", Path("t"), result={}), scenes, count=20)
    assert len(found) == len(unlabelled)
    first = found[0]
    assert first.levels[0].shape == (5, 5)  # 72 pixels; the padded batch has six cells
    assert first.levels[0][0, 0] == pytest.approx(1)
    assert first.levels[0][1:].max() < 1e-6
    np.testing.assert_allclose(first.unlabelled, unlabelled[min(unlabelled)])


def test_report_on_puts_folders_checkpoints_and_data_together(scenes, tmp_path):
    data = {"path": str(scenes.source.parent), "val": "val"}
    names = ("star", "alone", "taught")
    folders = {name: [str(run_folder(tmp_path / name, data=data))] for name in names}
    table = table_of(
        ("teacher", "teacher", 0.5, {"folders": folders["star"]}),
        ("plain", "plain", 0.3, {"folders": folders["alone"]}),
        ("frs", "distilled", 0.28, {"folders": folders["taught"]}),
    )
    written = report_on(tmp_path / "page.html", [Path(folder) for (folder,) in folders.values()], table=table, images=2)
    html = written.read_text(encoding="utf-8")
    assert "did not help" in html
    assert html.count("<img") == 2 * (1 + 3) + 4 * (2 + 1)  # detections; masks of four images with one level
    assert "the first 2 validation images" in html.lower()
    assert "unlabelled look-alikes <strong>" in html
