"""What `understudy methods` prints."""

import re
from pathlib import Path

import pytest
import torch
from pairs import all_terms

from understudy.config import DistillConfig, load_config
from understudy.detectors import build_detector
from understudy.errors import UserError
from understudy.methods import METHODS, Method, catalogue, method_options

EVERY = pytest.mark.parametrize("name", METHODS)
PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


@pytest.fixture(autouse=True)
def a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("family", catalogue.USUAL)
@pytest.mark.parametrize("width", [256, 128])
def test_the_usual_detectors_are_those_that_are_built(family, width):
    with torch.device("meta"):
        built = build_detector(f"{family}_resnet50", 80, neck_channels=width)
    assert catalogue.usual_spec(family, f"{family}_resnet50", width) == built.spec


@pytest.mark.parametrize("columns", [60, 80, 110, 300])
def test_every_method_has_its_first_sentence_under_the_heading_of_the_docs(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = catalogue.overview()
    assert max(map(len, text.splitlines())) <= min(columns, 120)
    assert text.isascii()
    for name, method in METHODS.items():
        assert f" {name} {method.__doc__.splitlines()[0]} " in " ".join(text.split())
    *groups, advice = text.split("\n\n")
    assert "understudy methods NAME" in advice
    for group in groups:
        heading, *lines = group.splitlines()
        section = PAGE.read_text().partition(f"## {heading.removesuffix(':')}\n")[2].partition("\n## ")[0]
        words = re.findall(r"\w+", " ".join(re.findall(r"^### .*", section, flags=re.MULTILINE)))
        assert [line.split()[0] for line in lines if line[2] != " "] == [word for word in words if word in METHODS]
    assert len(groups) == 3


def test_every_method_is_listed_with_all_that_is_to_be_known_of_it():
    text = catalogue.details()
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
    assert set(config.methods) == {name}
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

    def __init__(self, student, teacher, *, reach: tuple[int, ...] = (1, 2), strict: bool):
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
    assert catalogue.details().split("\n\n")[-2].splitlines() == [
        "picky: It serves only a narrow FCOS, or some of it.",
        "  terms: picky_near, picky_far",
        "  reads: neck features",
        "  source: this test",
        "  weights: 1 / 2 (fcos)",
        "  detectors: fcos; retinanet, faster_rcnn (near only, with",
        "    methods.picky.far_weight=0) (no weight: retinanet, faster_rcnn)",
        "  across families: retinanet from fcos, retinanet from gfl, retinanet from",
        "    faster_rcnn, fcos from retinanet, fcos from gfl, fcos from faster_rcnn,",
        "    faster_rcnn from retinanet, faster_rcnn from fcos, faster_rcnn from gfl",
        "    (near only, with methods.picky.far_weight=0)",
        "  necks: the student's as wide as the teacher's (detector.neck_channels)",
    ]
    text = catalogue.explain("picky")
    assert "                   retinanet         fcos          gfl  faster_rcnn\n" in text
    assert "  retinanet                a            a            a            a\n" in text
    assert "  fcos                     b          yes            b            b\n" in text
    assert "  gfl                      -            -            -            -\n" in text
    assert (
        "  a: near only, with methods.picky.far_weight=0 methods.picky.near_weight=...\n"
        "  b: near only, with methods.picky.far_weight=0\n"
    ) in text
    assert (
        "  methods.picky.reach=[1, 2]\n      how far, in levels. (a list, each item a whole number)\n"
        "  methods.picky.strict=...\n      (true or false; it must be given)\n"
    ) in text
    assert "  fcos: near_weight=1, far_weight=2\n  others: none, give near_weight=..., far_weight=...\n" in text
    assert text.endswith(
        "Example:\n"
        "  understudy distill ... --method picky methods.picky.strict=...\n"
        "  understudy distill ... --method picky methods.picky.strict=... \\\n"
        "      methods.picky.near_weight=... methods.picky.far_weight=..."
    )


def test_pages_tell_which_weights_are_known():
    assert "detectors: all (no weight: faster_rcnn)" in block_of("rank_mimicking")
    assert "detectors: all across" in block_of("hint")
    assert "others:" not in catalogue.explain("hint")
    assert "--method hint" in catalogue.explain("hint").splitlines()[-1]
    assert "others: none, give class_weight=..., location_weight=..." in catalogue.explain("bckd")
    assert "feature only, with methods.frs.class_weight=0" in block_of("frs")


def block_of(name: str) -> str:
    (block,) = (block for block in catalogue.details().split("\n\n") if block.startswith(f"{name}: "))
    return " ".join(block.split())


class Bare(Method):
    name, terms, weights, source, reads = "bare", ("near",), {}, "this test", ("features", "something else")

    def forward(self, student, teacher, truth):
        return {}


def test_a_class_without_docstring_and_weights_is_explained():
    text = catalogue.explain(f"{__name__}:Bare")
    assert text.startswith("It has no docstring that would say what it does.\n")
    assert "reads: neck features, something else\n" in text
    assert " yes" not in text
    assert f"  a: with methods.{__name__}:Bare.near_weight=...\n" in text
    assert "  all: none, give near_weight=...\n" in text
    assert text.count("understudy distill ...") == 1


class Raising(Bare):
    @classmethod
    def obstacles(cls, student, teacher, **options):
        raise RuntimeError("not today")


def test_a_class_that_cannot_be_asked_what_it_serves():
    with pytest.raises(UserError, match=r"cannot be explained: RuntimeError: not today \(test_catalogue.py, line"):
        catalogue.explain(f"{__name__}:Raising")


def test_a_method_of_ones_own_is_explained_and_an_unknown_one_refused():
    assert catalogue.explain(f"{__name__}:Picky").startswith("It serves only a narrow FCOS")
    assert f"methods.{__name__}:Picky.strict=..." in catalogue.explain(f"{__name__}:Picky")
    with pytest.raises(UserError, match="did you mean 'frs'"):
        catalogue.explain("fsr")


def test_the_page_on_methods_names_every_method_term_and_option():
    page = PAGE.read_text() + PAGE.with_name("dist2.md").read_text()
    for name, method in METHODS.items():
        assert name in page
        for term in method.terms:
            assert f"| `{name}_{term}` | " in page  # in the table of sizes
        own = set(method_options(name).model_fields) - {"ramp_steps"} - {f"{term}_weight" for term in all_terms(method)}
        for option in own:
            assert f"`{option}" in page, f"{name}: {option}"
