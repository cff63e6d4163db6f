"""Options of methods, in a config or in Python; classes of a user that are no complete method."""

import math
from dataclasses import replace
from typing import Annotated, Any

import pytest
from pairs import BIG, LITTLE, home, made_up_specs
from pydantic import AfterValidator, Field

import understudy
from understudy.analysis.swap import swap_test
from understudy.errors import UserError
from understudy.listing.methods import explain
from understudy.methods import METHODS, Method
from understudy.methods.loading import build_methods, method_class, method_options, resolve_options
from understudy.outputs import Spec


def faults(entries, student: Spec = LITTLE, teacher: Spec = BIG) -> list[str]:
    """The faults of a run's methods, line by line."""
    with pytest.raises(UserError) as failure:
        build_methods(entries, student, teacher)
    summary, *lines = str(failure.value).splitlines()
    assert summary == "Invalid method configuration:"
    assert all(line.startswith("  - ") for line in lines)
    return [line.removeprefix("  - ") for line in lines]


def test_options_are_typed_and_all_faults_come_at_once():
    entries = {"frs": {"featur_weight": 1, "normaliser": "level", "class_weight": -1, "ramp_steps": "soon"}, "fsr": {}}
    assert faults(entries) == [
        "methods.frs.normaliser: expected batch, image or pyramid, got level",
        "methods.frs.class_weight: expected a number of at least 0 or null, got -1",
        "methods.frs.ramp_steps: expected an integer of at least 0 or null, got soon",
        'methods.frs has no option "featur_weight"; did you mean "feature_weight"?',
        "there is no method 'fsr'; did you mean 'frs'? For your own method use package.module:Class",
    ]


def test_faults_of_options_of_the_pair_and_missing_weights_come_at_once():
    student, teacher = made_up_specs("fcos")
    entries = {
        "ld": {"temperature": -1},
        "frs": {"threshold": 1, "box_weight": "abc", "centerness": "no"},
        "bckd": {"class_weight": math.nan},
        "pfi": {},
        "zzz": None,
    }
    first, *found, last = faults(entries, student, replace(teacher, num_classes=7))
    assert first == "methods.ld.temperature: expected a number above 0, got -1"
    assert found[0] == "methods.frs.threshold: expected a number of at least 0 and below 1 or null, got 1"
    assert found[1] == "methods.frs.box_weight: expected a number of at least 0 or null, got abc"
    assert found[2] == "methods.bckd.class_weight: expected a finite number of at least 0 or null, got NaN"
    assert found[3].startswith("there is no method 'zzz'; available: frs, dist2, ")
    assert found[4].startswith(
        "ld_location, ld_vlr, ld_class: the student little has 3 classes, the teacher big has 7 classes"
    )
    assert found[5].startswith("frs_class: the student little has 3 classes, the teacher big has 7 classes")
    assert found[6] == "the other terms of frs can be used: methods.frs.class_weight=0"
    assert [line.partition(":")[0] for line in found[7:]] == ["bckd_class, bckd_location", "pfi_feature"]
    assert last.startswith(
        "available for the student little and the teacher big: frs (feature only), dist2 (fi only), "
    )
    assert not any("no default weight" in line for line in found)  # none is asked for, since these are not available

    assert faults({"ld": {"temperature": 0}, "pfi": {}, "bckd": {"class_weight": -1}}, student, teacher)[2:-1] == [
        "ld_location, ld_vlr, ld_class: both must predict the sides of a box as distributions: the student little has "
        "distances in strides, the teacher big distances in strides",
        "pfi has no default weight of 'feature' for a student of the family fcos: set methods.pfi.feature_weight so "
        "that the term is 10 to 30 % of the detection loss (losses.csv shows raw terms)",
        "bckd has no default weight of 'location' for a student of the family fcos: set methods.bckd.location_weight "
        "so that the term is 10 to 30 % of the detection loss (losses.csv shows raw terms)",
    ]
    assert ", pfi (set its weights), hint, " in faults({"ld": {}}, student, teacher)[-1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["frs"], 'methods: expected names, each with its options, e.g. {"frs": {}}, got ["frs"]'),
        ("frs", 'methods: expected names, each with its options, e.g. {"frs": {}}, got frs'),
        ({METHODS["frs"]: {}}, "a method's name is text, e.g. 'frs'; got <class 'understudy.methods.frs.FRS'>"),
        ({3: {}}, "a method's name is text, e.g. 'frs'; got 3"),
        ({"frs": ["a"]}, 'methods.frs: expected options and their values, got ["a"]'),
        ({"frs": []}, "methods.frs: expected options and their values, got []"),
        ({"hint": {3: 1}}, 'methods.hint has no option "3"; it has feature_weight, feature_share, share, ramp_steps'),
    ],
)
def test_entries_of_another_kind_are_refused(entries, message):
    with pytest.raises(UserError) as failure:
        build_methods(entries, LITTLE, BIG)
    assert str(failure.value).endswith(message)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("PFI", "did you mean 'pfi'?"),
        ("rm", "did you mean 'rank_mimicking'?"),
        ("FitNets", "did you mean 'hint'?"),
        ("fgfi", "did you mean 'fine_grained'?"),
        ("finegrained", "did you mean 'fine_grained'?"),
        ("de_feat", "did you mean 'defeat'?"),
        ("Non-Local", "did you mean 'nonlocal'?"),
        ("frs,pfi", "several methods: --method frs --method pfi, or methods=[frs, pfi]"),
        ("own.code.Fit", "did you mean 'own.code:Fit'?"),
        ("zzz", "available: frs, dist2, "),
    ],
)
def test_names_that_are_close_in_letters_or_in_the_literature(name, hint):
    with pytest.raises(UserError) as failure:
        method_class(name)
    assert str(failure.value).startswith(f"there is no method {name!r}; {hint}")


WRONG_FROM_PYTHON = [
    ("dist2", "strategies", "X2Y", "expected All2All, or one or several of N2N, B2B, B2N, N2B; got X2Y"),
    ("dist2", "strategies", "n2n", "N2B; got n2n; did you mean N2N?"),
    ("dist2", "strategies", "N2N,B2B", "N2B; got N2N,B2B; did you mean [N2N, B2B]?"),
    ("dist2", "strategies", ("All2All",), 'N2B; got ["All2All"]'),
    ("dist2", "strategies", [], "N2B; got []"),
    ("dist2", "supervision", "Truth", "expected truth, teacher or both, got Truth; did you mean truth?"),
    ("dist2", "draw", "some", "expected all or one, got some"),
    ("pfi", "power", 3, "expected 1 or 2, got 3"),
    ("pfi", "normaliser", "l2", "expected mean or norm, got l2"),
    ("pfi", "adapter", "never", "expected auto or always, got never"),
    ("cwd", "on", "x", "expected features or logits, got x"),
    ("cwd", "temperature", math.inf, "expected a finite number above 0, got Infinity"),
    ("fkd", "temperature", math.inf, "expected a finite number above 0 or null, got Infinity"),
    ("fgd", "temperature", math.inf, "expected a finite number above 0 or null, got Infinity"),
    ("rank_mimicking", "score", "soft", "expected sigmoid or logit, got soft"),
    ("soft_labels", "anchors", "some", "expected positives or all, got some"),
    ("soft_labels", "loss", "ce", "expected bce or kl, got ce; did you mean bce?"),
    ("soft_labels", "boxes", "x", "expected decoded or raw, got x"),
    ("ld", "normaliser", "x", "expected sum or positives, got x"),
    ("frs", "scores", "foo", "expected anchor or cell, got foo"),
    ("frs", "normaliser", "sum", "expected batch, image or pyramid, got sum"),
    ("frs", "region", "tpfp", "got tpfp; did you mean tp_fp?"),
    ("frs", "threshold", "a", "expected a number of at least 0 and below 1 or null, got a"),
    ("frs", "centerness", "perhaps", "expected true or false, got perhaps"),
    ("fine_grained", "iou_share", 1.0, "expected a number of at least 0 and below 1, got 1.0"),
    ("crosskd", "convolution", 1.5, "expected an integer above 0 or null, got 1.5"),
]


@pytest.mark.parametrize(("name", "option", "value", "message"), WRONG_FROM_PYTHON)
def test_options_are_checked_in_python_as_in_a_config(name, option, value, message):
    pair = home(name)
    for terms in (None, METHODS[name].terms[:1]):
        with pytest.raises(UserError) as failure:
            METHODS[name](pair.student, pair.teacher, terms=terms, **{option: value})
        assert str(failure.value).startswith(f"Invalid options for {name}:\n  - methods.{name}.{option}: ")
        assert str(failure.value).endswith(message)


def made(name: str, **options) -> Method:
    return METHODS[name](LITTLE, BIG, **options)


def test_values_have_the_types_of_the_options():
    assert made("frs", centerness="no", threshold="0.5").options.threshold == 0.5
    assert made("frs", centerness="no").options.centerness is False
    assert made("pfi", power=1).options.power == 1
    with pytest.raises(UserError, match=r'methods.hint has no option "power"; it has none'):
        made("hint", power=2)
    with pytest.raises(UserError, match="feature_weight"):  # a weight is the run's, not the method's
        made("frs", feature_weight=1)
    with pytest.raises(UserError) as failure:
        made("frs", scores="x", region="y")
    assert len(str(failure.value).splitlines()) == 3  # both at once


def test_terms_are_chosen_by_name():
    assert made("frs", terms=("class",)).terms == ("class",)
    assert made("frs", terms=("class", "box")).reads.keys() == {"class", "box"}
    with pytest.raises(UserError, match="frs has no term klass; its terms are feature, class, box"):
        made("frs", terms=("klass",))


def test_a_method_is_built_from_specs_that_fit():
    with pytest.raises(UserError, match=r"built from two Specs, got a str as the teacher: pass teacher.spec"):
        METHODS["hint"](LITTLE, "big")
    with pytest.raises(UserError, match="pfi cannot compare little with big:\n  - pfi_feature: the student little has"):
        METHODS["pfi"](LITTLE, replace(BIG, num_anchors=9))


def test_resolved_options_have_all_defaults():
    resolved = resolve_options({"ld": {"temperature": 5}, "hint": None}, replace(LITTLE, family="gfl"))
    assert resolved["ld"]["temperature"] == 5.0
    assert (resolved["ld"]["location_weight"], resolved["hint"]["feature_weight"]) == (0.25, 1.0)
    assert resolve_options({"ld": {}}, LITTLE)["ld"]["location_weight"] is None


# ------------------------------------------------------------------------------------------------ methods of one's own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math:pi", "'math:pi' is a float; expected a subclass of understudy.Method"),
        ("pathlib:Path", "'pathlib:Path' is the class Path; expected a subclass of understudy.Method"),
        ("understudy.methods:METHODS", "is a dict; expected a subclass of understudy.Method"),
        ("understudy.methods.frs:FRSS", "understudy.methods.frs has no FRSS; its methods are FRS"),
        ("understudy:Method", "'understudy:Method' is the class Method; expected a subclass of understudy.Method"),
        (
            "no.such.module:Own",
            "there is no module no; run in the folder of the file, or put that folder on PYTHONPATH",
        ),
        (":Own", "':Own': not an import path; expected package.module:Class"),
        ("..own:Own", "'..own:Own': not an import path; expected package.module:Class"),
        ("its_syntax:Own", "the method its_syntax:Own cannot be imported: SyntaxError: "),
        ("its_import:Own", "imported: ModuleNotFoundError: No module named 'nowhere' (its_import.py, line 1)"),
        ("it_raises:Own", "the method it_raises:Own cannot be imported: ValueError: two lines (it_raises.py, line 2)"),
        (
            "without_a_type:Own",
            "cannot be imported: PydanticUserError: A non-annotated attribute was detected: `power =",
        ),
    ],
)
def test_import_paths_that_lead_to_no_method(name, message, tmp_path, monkeypatch):
    (tmp_path / "its_syntax.py").write_text("def f(:\n")
    (tmp_path / "its_import.py").write_text("import nowhere\n")
    (tmp_path / "it_raises.py").write_text("\nraise ValueError('two\\nlines')\n")
    options = "    class Options(Method.Options):\n        power = 2\n"
    (tmp_path / "without_a_type.py").write_text(f"from understudy import Method\nclass Own(Method):\n{options}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as failure:
        method_class(name)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def no_terms(self, student, teacher, truth, layers=None):
    return {}


def own(*, init=None, forward=no_terms, options: dict[str, Any] | None = None, **attributes) -> type[Method]:
    """A class of a user with some attributes replaced; None takes one away.

    Args:
        init: its constructor, if it has one.
        forward: likewise.
        options: types and defaults of its options.
        **attributes: its class attributes.
    """
    facts = {"name": "own", "terms": ("mean",), "weights": {"fcos": {"mean": 1.0}}, "source": "a test"}
    facts |= {"reads": {"mean": ("features",)}} | attributes
    body = {fact: value for fact, value in facts.items() if value is not None}
    body |= {"forward": forward} if forward else {}
    body |= {"__init__": init} if init else {}
    if options:
        types = {"__annotations__": {name: kind for name, (kind, *_) in options.items()}, "__module__": __name__}
        body["Options"] = type("Options", (Method.Options,), types | {n: v[0] for n, (_, *v) in options.items() if v})
    return type("Made", (Method,), body)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"terms": None}, 'it has no terms, e.g. terms = ("feature",)'),
        ({"terms": "feature"}, "terms is 'feature', expected e.g. terms = (\"feature\",)"),
        ({"terms": ()}, "terms is (), expected e.g. "),
        ({"name": None, "source": None}, 'it has no name, e.g. name = "mine"; it has no source, e.g. source = '),
        ({"weights": None}, 'it has no weights, e.g. weights = {"*": {"feature": 1.0}}'),
        ({"weights": {"fcos": 1.0}}, "weights is {'fcos': 1.0}, expected e.g. "),
        ({"weights": {"fcos": {"mean": "1"}}}, "weights is {'fcos': {'mean': '1'}}, expected e.g. "),
        ({"weights": {"fcos": {"meen": 1.0}}}, "it has weights for meen, but its terms are mean"),
        ({"ramp_steps": -1}, "ramp_steps is -1, expected e.g. ramp_steps = 500"),
        ({"reads": None}, 'it has no reads, e.g. reads = {"feature": ("features",)}'),
        ({"reads": {}}, "reads has no entry for mean, e.g. reads = {'mean': ('features',)}"),
        ({"reads": {"mean": ("boxen",)}}, "reads has the unknown inputs boxen; expected some of features, stages, "),
        ({"forward": None}, "it has no forward"),
        (
            {"options": {"ramp_steps": (int, 0), "mean_weight": (float, 0.0)}},
            "its option ",  # of a set, in any order
        ),
    ],
)
def test_classes_that_are_no_complete_method(attributes, message, monkeypatch):
    monkeypatch.setattr(f"{__name__}.Made", own(**attributes), raising=False)
    for use in (method_class, explain, lambda path: faults({path: {}})[0]):
        try:
            text = use(f"{__name__}:Made")
        except UserError as error:
            text = str(error)
        assert text.startswith(f"the method {__name__}:Made cannot be used: {message}")
        assert "\n" not in text
        if "options" in attributes:
            assert all(f"its option {name} has a reserved name: rename it" in text for name in attributes["options"])


def raising(self, student, teacher, **options):
    raise ValueError("a power\nis not to be had")


def test_a_method_of_ones_own_that_needs_an_option_or_raises(monkeypatch):
    path = f"{__name__}:Made"
    monkeypatch.setattr(f"{__name__}.Made", own(options={"power": (int,)}), raising=False)
    specs = made_up_specs("fcos")
    assert faults({path: {}}, *specs) == [f"methods.{path}.power: missing; expected an integer"]
    assert faults({path: {"power": "x"}}, *specs) == [f"methods.{path}.power: expected an integer, got x"]
    (method,), _ = build_methods({path: {"power": 1}}, *specs)
    assert method.options.power == 1
    monkeypatch.setattr(f"{__name__}.Made", own(init=raising))
    (line,) = faults({path: {}}, *specs)
    assert line.startswith(
        f"the method {path} cannot be built: ValueError: a power is not to be had (test_options.py, line "
    )
    monkeypatch.setitem(METHODS, "made", own(init=raising))
    with pytest.raises(ValueError, match="a power\nis not") as failure:  # an error of ours keeps its traceback
        build_methods({"made": {}}, *specs)
    assert not isinstance(failure.value, UserError)


def even(value: int) -> int:
    if value % 2:
        raise ValueError("it has to be even")
    return value


class Extended(METHODS["frs"]):
    """FRS with one more option."""

    name = "extended"

    class Options(METHODS["frs"].Options):
        more: Annotated[int, Field(ge=1), AfterValidator(even)] = 2
        """An even number."""


def test_a_method_of_ones_own_has_the_options_of_the_one_that_it_extends():
    path = f"{__name__}:Extended"
    assert {"more", "threshold", "feature_weight"} <= set(method_options(path).model_fields)
    (method,), _ = build_methods({path: {"more": "2", "threshold": "0.5", "feature_weight": 0}}, LITTLE, BIG)
    assert (method.options.more, method.options.threshold, method.terms) == (2, 0.5, ("class",))
    assert faults({path: {"more": 0, "threshold": 1}}) == [
        f"methods.{path}.threshold: expected a number of at least 0 and below 1 or null, got 1",
        f"methods.{path}.more: expected an integer of at least 1, got 0",
    ]
    assert faults({path: {"more": 3}}) == [
        f"methods.{path}.more: expected an integer of at least 1, got 3; it has to be even"
    ]
    with pytest.raises(UserError, match=r"methods.extended.more: expected .*, got 0\n.*extended has no option .les"):
        Extended(LITTLE, BIG, more=0, les=1)


# ------------------------------------------------------------------------------------------------------------ in a run


class OwnDist2(METHODS["dist2"]):
    """Dist2, and more."""


def test_the_swap_test_finds_a_dist2_of_ones_own_by_its_base_class(tiny, trained, tmp_path, capsys):
    """Beside another method, whose adapters come first in the checkpoint; only one ramp is longer than the run."""
    methods = {"hint": {"ramp_steps": 4}, f"{__name__}:OwnDist2": {"strategies": "N2N", "ramp_steps": 8}}
    run = understudy.distill(tiny | {"schedule.epochs": 1}, run=tmp_path / "run", teacher=trained, methods=methods)
    assert [swap.transformed is not None for swap in swap_test(trained, run, device="cpu").swaps] == [True, False]
    found = " ".join(capsys.readouterr().err.split())
    assert f"methods.{__name__}:OwnDist2.ramp_steps=8 is longer than the run (4 steps): the weights reach only" in found
    assert "methods.hint.ramp_steps" not in found


def test_faults_of_options_and_of_the_pair_come_at_once_and_leave_no_run_folder(tiny, trained, tmp_path):
    methods = {"ld": {"class_temperature": 0}, "pfi": {"power": 3}}
    with pytest.raises(UserError) as failure:
        understudy.distill(tiny, run=tmp_path / "run", teacher=trained, methods=methods, balance="off")
    for part in (
        "methods.ld.class_temperature: ",
        "methods.pfi.power: ",
        "ld_location, ld_vlr, ld_class: both must predict",
    ):
        assert part in str(failure.value)
    assert "set methods.pfi.feature_weight" in str(failure.value)
    assert not (tmp_path / "run").exists()


def test_a_boolean_is_no_number():
    assert faults({"frs": {"feature_weight": True, "ramp_steps": False, "threshold": True}}) == [
        "methods.frs.threshold: expected a number of at least 0 and below 1 or null, got true",
        "methods.frs.feature_weight: expected a number of at least 0 or null, got true",
        "methods.frs.ramp_steps: expected an integer of at least 0 or null, got false",
    ]
