"""Names of rows: unique, by what tells rows of the same name apart."""

import pytest
from run_folders import TEACHER, make_run

from understudy.compare.table import summarise


def names(*folders):
    return [row.name for row in summarise(folders, measure_speed=False).rows]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"batch_size": 8}, {"batch_size": 4}, ["plain, batch_size=8", "plain, batch_size=4"]),
        ({"detector": TEACHER}, {}, ["plain, retinanet_resnet18", "plain, retinanet_mobilenet_v2"]),
        ({"optimizer": {"momentum": 0.8}}, {}, ["plain, momentum=0.8", "plain, momentum=0.9"]),
        ({"data": "here"}, {"data": "elsewhere"}, ["plain: one", "plain: other"]),
    ],
)
def test_a_differing_key_is_added(tmp_path, one, other, expected):
    assert names(make_run(tmp_path / "one", 0.3, **one), make_run(tmp_path / "other", 0.3, **other)) == expected


def test_students_of_two_teachers_have_the_teachers_name(tmp_path):
    teachers = [
        make_run(tmp_path / name, 0.5, detector=TEACHER, batch_size=size) for name, size in (("a", 4), ("b", 8))
    ]
    students = [make_run(tmp_path / f"of_{each.name}", 0.4, teacher=each / "best.ckpt") for each in teachers]
    assert names(*teachers, *students)[2:] == ["frs, teacher=a", "frs, teacher=b"]


def test_two_keys_where_one_is_not_enough(tmp_path):
    four = [{"batch_size": size, "precision": bits} for size in (4, 8) for bits in ("32", "bf16")]
    found = names(*(make_run(tmp_path / str(number), 0.3, **each) for number, each in enumerate(four)))
    assert found[:2] == ["plain, batch_size=4, precision='32'", "plain, batch_size=4, precision=bf16"]
    assert len(set(found)) == 4


def test_folders_of_one_name_have_their_path(tmp_path):
    long = "x" * 40
    first, second = (make_run(tmp_path / name / "run", 0.3, recipe=f"{name}{long}") for name in "ab")
    options = [
        make_run(tmp_path / name / "long", 0.3, detector={**TEACHER, "backbone_weights": name + long}) for name in "ab"
    ]
    assert names(first, second) == ["plain"]  # the recipe has no effect of its own: two runs of one experiment
    assert names(*options) == [f"plain: {folder}" for folder in options]
