"""Scores of detections on a split, and of checkpoints on data sets of other classes."""

import io
import json
import shutil

import pytest
from rich.console import Console
from splits import detection, make_split, random_case

from understudy.cli import main
from understudy.errors import UserError
from understudy.evaluation import Detections, Evaluation, evaluate, score


def test_detections_of_other_data_are_refused_with_all_faults():
    data = make_split([{"boxes": [[0, 0, 10, 10]]}])
    box = [0, 0, 5, 5]
    rows = [detection(0, box, 0.5), detection(7, box, 0.5), detection(0, box, 0.5, category=9)]
    message = r"image_id 70 is not in the split(.|\n)*category_id 9 is not one of \[1, 2\]"
    with pytest.raises(UserError, match=message):
        score(data, rows)


def test_rows_and_arrays_are_the_same():
    data, rows = random_case(3)
    assert score(data, Detections.of_rows(rows)).to_dict() == score(data, rows).to_dict()
    assert Detections.of_rows(rows).rows() == rows


def test_the_order_of_the_images_moves_nothing():
    data, rows = random_case(4)
    forth, back = score(data, rows), score(data, sorted(rows, key=lambda one: -one["image_id"]))
    assert back.coco == pytest.approx(forth.coco, abs=1e-6, nan_ok=True)
    assert back.voc_per_class == pytest.approx(forth.voc_per_class, abs=1e-6, nan_ok=True)


def test_aliases_match_classes_and_are_said(scenes, confident, tmp_path, capsys):
    """A class under another name: unmatched with a hint, matched by an alias, and an alias that names nothing."""
    checkpoint = confident("retinanet_mobilenet_v2")
    folder = shutil.copytree(scenes, tmp_path / "renamed")
    file = folder / "instances_val.json"
    file.write_text(file.read_text().replace('"arrow"', '"arrows"'))
    command = ["evaluate", str(checkpoint), str(folder)]
    for more, code, said in (
        ([], 0, "If arrow and arrows are the same class: --alias 'arrow=arrows'."),
        (["--alias", "arrow=arrows"], 0, "Classes matched under another name (detector = data set): arrow = arrows."),
        (["--alias", "arow=arrows"], 2, "arow: no such class; did you mean"),
        (["--alias", "arrow"], 2, "--alias arrow: expected NAME=NAME"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*command, *more])
        assert (stop.value.code or 0) == code
        output = capsys.readouterr()
        assert said in " ".join((output.out + output.err).split())
    same, other = evaluate(checkpoint, scenes), evaluate(checkpoint, folder, aliases={"arrow": "arrows"})
    assert other.per_class["arrows"] == pytest.approx(same.per_class["arrow"], nan_ok=True)
    assert other.unknown_classes == other.unused_classes == ()


def test_a_detector_of_other_classes_is_measured_on_the_common_ones(scenes, confident, tmp_path):
    """Detections of classes that the data lack are left out, objects the detector cannot know count as missed."""
    checkpoint = confident("retinanet_mobilenet_v2")
    same = evaluate(checkpoint, scenes)
    assert same.unknown_classes == same.unused_classes == ()
    found = max((name for name, value in same.per_class.items() if value >= 0), key=lambda name: same.per_class[name])
    folder = shutil.copytree(scenes, tmp_path / "renamed")
    content = json.loads((folder / "instances_val.json").read_text())
    for category in content["categories"]:
        category["name"] = "unicorn" if category["name"] == found else category["name"].upper()
    (folder / "instances_val.json").write_text(json.dumps(content))
    other = evaluate(checkpoint, folder)
    assert (other.unknown_classes, other.unused_classes) == (("unicorn",), (found,))
    assert other.per_class["unicorn"] == other.voc_per_class["unicorn"] == 0 < same.per_class[found]
    assert {name.upper(): value for name, value in same.per_class.items() if name != found} == pytest.approx(
        {name: value for name, value in other.per_class.items() if name != "unicorn"}, abs=0, nan_ok=True
    )
    assert Evaluation.from_dict(json.loads(json.dumps(other.to_dict()))).unused_classes == (found,)
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(other)
    printed = console.export_text()
    assert f"{checkpoint} on the split val of {folder / 'instances_val.json'}\n4 images, " in printed
    assert f"The detector lacks unicorn: their objects count as missed.\nThe data set lacks {found}: their" in printed
