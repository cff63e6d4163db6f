"""What `understudy methods` prints."""

from pathlib import Path

import pytest
import torch
from pairs import all_terms

from understudy.config import DistillConfig, load_config
from understudy.detectors import build_detector
from understudy.errors import UserError
from understudy.methods import METHODS, Method, catalogue, method_options

EVERY = pytest.mark.parametrize("name", METHODS)


@pytest.mark.parametrize("family", catalogue.USUAL)
@pytest.mark.parametrize("width", [256, 128])
def test_the_usual_detectors_are_those_that_are_built(family, width):
    with torch.device("meta"):
        built = build_detector(f"{family}_resnet50", 80, neck_channels=width)
    assert catalogue.usual_spec(family, f"{family}_resnet50", width) == built.spec


def test_every_method_is_listed_with_all_that_is_to_be_known_of_it():
    text = catalogue.table()
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    blocks = {block.partition(":")[0]: " ".join(block.split()) for block in text.split("\n\n")}
    for name, method in METHODS.items():
        for term in method.terms:
            assert f"{name}_{term}" in blocks[name]
        for fact in ("terms: ", "reads: ", "weights: ", "source: ", "detectors: ", "across families: "):
            assert f" {fact}" in blocks[name], fact


@EVERY
def test_what_is_explained_of_a_method_fits_80_columns_and_loads(name):
    text = catalogue.explain(name)
    assert max(map(len, text.splitlines())) <= 80
    options = [line.strip() for line in text.splitlines() if line.startswith("  methods.")]
    config = load_config(DistillConfig, None, ["run=r", "data=d", "teacher=t", *options])
    assert len(config.methods[name]) == len(options) == len(method_options(name).model_fields)
    method_options(name)(**config.methods[name])
    meanings = text.partition("Options with their defaults:")[2]
    for option in method_options(name).model_fields:
        assert meanings.partition(f"methods.{name}.{option}=")[2].splitlines()[1].startswith("      "), option


class Picky(Method):
    """It serves only a narrow FCOS, or some of it.

    Args:
        student: what is known of the student.
        teacher: what is known of the teacher.
        reach: how far, in levels.
    """

    name = "picky"
    terms = ("near", "far")
    weights = {"fcos": {"near": 1.0, "far": 2.0}}  # noqa: RUF012
    source = "this test"
    reads = ("features",)

    def __init__(self, student, teacher, *, reach: tuple[int, ...] = (1, 2), strict: bool = False):
        super().__init__(student, teacher)

    @classmethod
    def obstacles(cls, student, teacher, **options):
        if student.family == teacher.family == "fcos" and student.channels == teacher.channels:
            return {}
        return {"near": "no", "far": "no"} if student.family == "gfl" else {"far": "no"}

    def forward(self, student, teacher, truth):
        return {}


def test_pairs_are_told_apart_by_the_terms_that_are_served(monkeypatch):
    monkeypatch.setitem(METHODS, "picky", Picky)
    assert catalogue.table().split("\n\n")[-2].splitlines() == [
        "picky: It serves only a narrow FCOS, or some of it.",
        "  terms: picky_near, picky_far",
        "  reads: neck features",
        "  source: this test",
        "  weights: 1 / 2 (fcos)",
        "  detectors: fcos; retinanet, faster_rcnn (near only)",
        "  across families: retinanet from fcos, retinanet from gfl, retinanet from",
        "    faster_rcnn, fcos from retinanet, fcos from gfl, fcos from faster_rcnn,",
        "    faster_rcnn from retinanet, faster_rcnn from fcos, faster_rcnn from gfl",
        "    (near only)",
        "  necks: the student's as wide as the teacher's (detector.neck_channels)",
    ]
    text = catalogue.explain("picky")
    assert "                   retinanet         fcos          gfl  faster_rcnn\n" in text
    assert "  fcos                     a          yes            a            a\n" in text
    assert "  gfl                      -            -            -            -\n" in text
    assert "  a: near only\n" in text
    assert "  methods.picky.reach=[1, 2]\n      how far, in levels.\n  methods.picky.strict=false\n" in text
    assert "  fcos: near_weight=1, far_weight=2\n" in text


def test_a_method_of_ones_own_is_explained_and_an_unknown_one_refused():
    assert catalogue.explain(f"{__name__}:Picky").startswith("It serves only a narrow FCOS")
    assert f"methods.{__name__}:Picky.strict=false" in catalogue.explain(f"{__name__}:Picky")
    with pytest.raises(UserError, match="did you mean 'frs'"):
        catalogue.explain("fsr")


def test_the_page_on_methods_names_every_method_term_and_option():
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    page += (Path(__file__).parents[1] / "docs" / "dist2.md").read_text()
    for name, method in METHODS.items():
        assert name in page
        for term in method.terms:
            assert f"| `{name}_{term}` | " in page  # in the table of sizes
        own = set(method_options(name).model_fields) - {"ramp_steps"} - {f"{term}_weight" for term in all_terms(method)}
        for option in own:
            assert f"`{option}" in page, f"{name}: {option}"
