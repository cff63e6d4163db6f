"""What `understudy methods` prints, and the stored facts that it prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.config import DistillConfig, load_config
from understudy.errors import UserError
from understudy.listing import methods as listing
from understudy.listing.facts import method_facts
from understudy.methods import METHODS
from understudy.methods.base import Method
from understudy.methods.loading import method_options

REMEDY = "run `python docs/generate.py --quick`"
REMEDY_FOR_A_NEW_METHOD = "run `python docs/generate.py`"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def stored():
    """Return the stored facts, of all methods."""
    facts = listing.stored_facts()
    assert list(facts) == list(METHODS), REMEDY_FOR_A_NEW_METHOD
    return facts


def test_stored_facts_are_those_of_the_code(stored):
    for name in METHODS:
        assert stored[name] == method_facts(name), f"{name}: {REMEDY}"


def test_the_lists_need_no_torch():
    program = (
        "import sys; from understudy.cli import main\n"
        "for words in (['methods'], ['methods', 'frs'], ['methods', '--short'], ['detectors']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'lightning'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("columns", [60, 80, 300])
def test_every_method_has_its_first_sentence_under_a_heading(columns, stored, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = listing.overview()
    assert max(map(len, text.splitlines())) <= min(columns, 120)
    assert text.isascii()
    for name, method in METHODS.items():
        assert f" {name} {method.__doc__.splitlines()[0]} " in " ".join(text.split())
    *groups, advice = text.split("\n\n")
    assert "understudy methods NAME" in advice
    assert [group.splitlines()[0].removesuffix(":") for group in groups] == list(listing.HEADINGS.values())


def test_every_method_is_listed_with_its_facts(stored):
    text = listing.details()
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    blocks = {block.partition(":")[0]: " ".join(block.split()) for block in text.split("\n\n")}
    for name, method in METHODS.items():
        for term in method.terms:
            assert f"{name}_{term}" in blocks[name]
        for fact in ("terms", "reads", "weights", "source", "checked against", "detectors", "across families"):
            assert f" {fact}: " in blocks[name], fact


def test_methods_that_could_not_be_verified_are_marked_everywhere(stored):
    unverified = {"dist2", "rank_mimicking", "pfi", "second_stage"}
    assert {name for name, facts in stored.items() if facts["unverified"]} == unverified
    pages = (DOCS / "methods" / "README.md").read_text()
    for text in (listing.overview(), listing.details(), pages):
        assert " ".join(text.split()).count("(Not verified against the paper.)") == len(unverified)
    assert "  checked against: our reading of a poster" in listing.explain("dist2")
    assert "| checked against | our reading of a poster" in (DOCS / "methods" / "dist2.md").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_the_explanation_of_a_method_fits_80_columns_and_its_options_load(name):
    text = listing.explain(name)
    body, _, facts = text.partition("\nEvidence:")
    prose = [line for line in body.splitlines() if not line.startswith("    ")]  # all but the formulas
    assert not [line for line in (*prose, *facts.splitlines()) if len(line) > 80]
    options = [line.strip() for line in text.splitlines() if line.startswith("  methods.")]
    config = load_config(DistillConfig, None, ["run=r", "data=d", "teacher=t", *options])
    assert set(config.methods) == {name}
    assert len(config.methods[name]) == len(options) == len(method_options(name).model_fields)
    method_options(name)(**config.methods[name])
    meanings = text.partition("Options and their defaults:")[2]
    for option in method_options(name).model_fields:
        meaning = meanings.partition(f"methods.{name}.{option}=")[2].splitlines()[1]
        assert re.match(r" {6}[^ (]", meaning), f"{option} has no docstring"


class Picky(Method):
    r"""It serves only a narrow FCOS, or a part of it.

    Its formula:

    .. math::
        L = \sum_l 1

    Evidence:
        ours: everything,
            on two lines.
        paper: nothing.
    """

    name = "picky"
    aliases = ("choosy",)
    terms = ("near", "far")
    weights = {"fcos": {"near": 1.0, "far": 2.0}}
    source = "this test"
    reads = {"near": ("features",), "far": ("features",)}

    class Options(Method.Options):
        """Options."""

        reach: tuple[int, ...] = (1, 2)
        """How far, in levels."""
        strict: bool

    @classmethod
    def misfits(cls, student, teacher, options):
        if student.family == teacher.family == "fcos" and student.channels == teacher.channels:
            return {}
        return {"near": ["no"], "far": ["no"]} if student.family == "gfl" else {"far": ["no"]}

    def forward(self, student, teacher, truth, layers=None):
        return {}


PICKY = f"{__name__}:Picky"


def test_pairs_are_grouped_by_the_terms_that_are_served(monkeypatch):
    facts = {**method_facts(PICKY), "name": "picky"}
    monkeypatch.setattr(listing, "stored_facts", lambda: {"picky": facts})
    assert listing.details().split("\n\n")[0].splitlines() == [
        "picky: It serves only a narrow FCOS, or a part of it.",
        "  terms: picky_near, picky_far",
        "  reads: neck features",
        "  also called: choosy",
        "  source: this test",
        "  weights: 1 / 2 (fcos)",
        "  detectors: fcos; retinanet, faster_rcnn (near only, with",
        "    methods.picky.far_weight=0) (no published weight: retinanet, faster_rcnn)",
        "  across families: retinanet from fcos, retinanet from gfl, retinanet from",
        "    faster_rcnn, fcos from retinanet, fcos from gfl, fcos from faster_rcnn,",
        "    faster_rcnn from retinanet, faster_rcnn from fcos, faster_rcnn from gfl",
        "    (near only, with methods.picky.far_weight=0)",
        "  necks: student and teacher need the same width (detector.neck_channels)",
    ]
    text = listing.explain("picky")
    assert text.startswith(
        "It serves only a narrow FCOS, or a part of it.\n\nIts formula:\n\n    L = \\sum_l 1\n\n"
        "Evidence:\n  ours: everything, on two lines.\n  paper: nothing.\n\n"
    )
    assert "                   retinanet         fcos          gfl  faster_rcnn\n" in text
    assert "  retinanet                a            a            a            a\n" in text
    assert "  fcos                     a          yes            a            a\n" in text
    assert "  gfl                      -            -            -            -\n" in text
    assert "  a: near only, with methods.picky.far_weight=0\n" in text
    assert (
        "  methods.picky.reach=[1, 2]\n      How far, in levels. (a list, each item an integer)\n"
        "  methods.picky.strict=...\n      (true or false; required)\n"
    ) in text
    assert (
        "  fcos: near_weight=1, far_weight=2\n"
        "  others: none published; with balance=off, set near_weight=..., far_weight=...\n" in text
    )
    assert text.endswith(
        "Example:\n"
        "  understudy distill ... --method picky methods.picky.strict=...\n"
        "  understudy distill ... --method picky methods.picky.strict=... balance=off \\\n"
        "      methods.picky.near_weight=... methods.picky.far_weight=..."
    )


def test_pages_state_which_weights_exist():
    assert "detectors: all (no published weight: faster_rcnn)" in block_of("rank_mimicking")
    assert "detectors: all across" in block_of("hint")
    assert "weights: 1 (every family)" in block_of("hint")
    assert "others:" not in listing.explain("hint")
    assert "--method hint" in listing.explain("hint").splitlines()[-1]
    said = " ".join(listing.explain("bckd").split())
    assert "others: none published; with balance=off, set class_weight=..., location_weight=..." in said
    assert "feature only, with methods.frs.class_weight=0" in block_of("frs")


def block_of(name: str) -> str:
    (block,) = (block for block in listing.details().split("\n\n") if block.startswith(f"{name}: "))
    return " ".join(block.split())


class Bare(Method):
    name, terms, weights, source, reads = "bare", ("near",), {}, "this test", {"near": ("features",)}

    def forward(self, student, teacher, truth, layers=None):
        return {}


def test_a_class_without_docstring_and_weights_is_explained():
    text = listing.explain(f"{__name__}:Bare")
    assert text.startswith("It has no docstring.\n")
    assert "reads: neck features\n" in text
    assert "  all: none published; with balance=off, set near_weight=...\n" in text
    assert text.count("understudy distill ...") == 2


class Raising(Bare):
    @classmethod
    def misfits(cls, student, teacher, options):
        raise RuntimeError("not today")


def test_a_class_whose_code_raises():
    with pytest.raises(UserError, match=r"cannot be described: RuntimeError: not today \(test_methods.py, line"):
        listing.explain(f"{__name__}:Raising")


def test_a_method_of_a_user_is_explained_and_an_unknown_one_refused():
    assert listing.explain(PICKY).startswith("It serves only a narrow FCOS")
    assert f"methods.{PICKY}.strict=..." in listing.explain(PICKY)
    with pytest.raises(UserError, match="did you mean 'frs'"):
        listing.explain("fsr")


def test_pages_and_table_of_loss_sizes_follow_from_the_code(stored):
    import importlib.util

    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    pages = {page.stem: page.read_text() for page in (DOCS / "methods").glob("*.md")}
    assert set(pages) == {*METHODS, "README"}, REMEDY_FOR_A_NEW_METHOD
    assert pages["README"] == generate.index_page(), REMEDY
    sizes = (DOCS / "loss_sizes.md").read_text()
    for name, facts in stored.items():
        assert pages[name] == generate.method_page(facts), f"{name}: {REMEDY}"
        for term in facts["terms"]:
            assert f"| `{name}_{term}` | " in sizes, REMEDY_FOR_A_NEW_METHOD


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_formula_and_its_evidence(name, stored):
    facts = stored[name]
    assert any("math" in block for block in facts["body"]), "the docstring has no `.. math::` block"
    assert facts["evidence"], "the docstring has no section `Evidence:`"
    assert len(facts["summary"]) <= 130
