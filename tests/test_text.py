import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from understudy.text import as_yaml, closest, expected, listed, mismatch, percent, shown, wrapped


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (Path | None, "a path or null"),
        (Annotated[int, Field(ge=1)], "an integer of at least 1"),
        (Annotated[float, Field(ge=0, le=1)], "a number from 0 to 1"),
        (Annotated[float, Field(gt=0, lt=1)], "a number above 0 and below 1"),
        (Literal["a", "b", 3], "a, b or 3"),
        (list[int], "a list, each item an integer"),
        (tuple[float, float], "a list of 2 values, each a number"),
        (int | tuple[int, ...], "one or several values, each an integer"),
        (Literal["a", "b"] | tuple[Literal["a", "b"], ...] | None, "one or several of a, b, or null"),
        (dict[str, int], "keys and values"),
        (dict[str, dict[str, int]], "names, each with its options"),
    ],
)
def test_types_in_words(annotation, words):
    assert expected(annotation) == words


def test_mismatch_suggests_names():
    parts = Literal["stages", "features"] | tuple[Literal["stages", "features"], ...]
    assert mismatch("part", expected(parts), "stage,featurs", parts) == (
        "part: expected one or several of stages, features, got stage,featurs; did you mean [stages, features]?"
    )
    assert mismatch("seed", "an integer", None, int) == "seed: expected an integer, got null"


def test_closest_ignores_case_and_dashes():
    assert closest("Faster-RCNN", ["faster_rcnn", "fcos"]) == "faster_rcnn"
    assert closest("nothing", ["faster_rcnn", "fcos"]) is None


@pytest.mark.parametrize("value", [None, True, 3, 1e-7, 0.25, "text", "32", "no", "", [1, [2.5, None]], {"a": {}}])
def test_yaml_of_a_value_reads_back(value):
    assert yaml.safe_load(as_yaml(value)) == value
    assert "\n" not in as_yaml(value)


def test_tuples_are_lists_in_yaml():
    assert as_yaml(((1, 2), "a")) == "[[1, 2], a]"


def test_long_values_and_lists_are_shortened():
    assert len(shown("a" * 100)) == 60
    assert shown({3: "x"}) == '{"3": "x"}'
    assert listed(range(15)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more"
    assert listed(["a", "b"], 1, separator="; ") == "a and 1 more"
    assert listed([]) == ""


def test_percent():
    assert (percent(0.4213), percent(1), percent(math.nan)) == ("42.1", "100.0", "-")


def test_wrapped_lines_fit(monkeypatch):
    text = "one two\nthree-four  five"
    assert wrapped(text, "- ", hanging=2, width=12) == "- one two\n  three-four\n  five"
    assert wrapped(text, "  ", width=12) == "  one two\n  three-four\n  five"
    for columns, widest in (("40", 40), ("500", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        assert max(map(len, wrapped("word " * 100).splitlines())) in range(widest - 4, widest + 1)
