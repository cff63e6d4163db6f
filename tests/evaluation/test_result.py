"""The numbers of an evaluation as JSON and as a table."""

import io
import json

import pytest
from rich.console import Console
from splits import random_case

from understudy.evaluation import Evaluation, score
from understudy.text import percent


def test_json_round_trip_says_none_for_undefined():
    data, rows = random_case(3)
    result = score(data, rows)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["per_class"]["never seen"] is None
    again = Evaluation.from_dict(json.loads(text))
    for name in ("coco", "per_class", "voc", "voc_per_class"):
        assert getattr(again, name) == pytest.approx(getattr(result, name), nan_ok=True)
    assert again.confusion == again.curves is None
    detailed = score(data, rows, detailed=True)
    again = Evaluation.from_dict(json.loads(json.dumps(detailed.to_dict(), allow_nan=False)))
    assert (again.objects, again.confusion, again.curves) == (detailed.objects, detailed.confusion, detailed.curves)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_shows_percent_and_a_dash_for_undefined(width):
    console = Console(width=width, record=True, file=io.StringIO())
    data, rows = random_case(3)
    result = score(data, rows)
    console.print(result)
    text = console.export_text()
    assert percent(result.coco["AP"]) in text
    assert any(line.split() == ["never", "seen", "0", "-", "-"] for line in text.splitlines())
    assert f"{len(data)} images, {sum(result.objects.values())} objects" in text
    assert max(map(len, text.splitlines())) <= width
