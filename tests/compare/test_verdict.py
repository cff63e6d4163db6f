"""The verdict: helped, no difference, worse or unknown, in words."""

import math

import pytest

from understudy.compare.verdict import gap_closed, judge


def test_gap():
    assert gap_closed(0.4, 0.3, 0.5) == pytest.approx(0.5)
    assert gap_closed(0.2, 0.3, 0.5) == pytest.approx(-0.5)
    assert gap_closed(0.6, 0.3, 0.5) == pytest.approx(1.5)
    assert gap_closed(0.4, 0.5, 0.5) is None
    assert gap_closed(0.4, 0.5, 0.3) is None
    assert gap_closed(math.nan, 0.3, 0.5) is gap_closed(0.4, math.nan, 0.5) is gap_closed(0.4, 0.3, math.nan) is None


def test_helped_and_how_much_of_the_gap_it_closed():
    verdict = judge("frs", [0.35], plain=[0.3], teacher=[0.5])
    assert (verdict.kind, verdict.gain) == ("helped", pytest.approx(0.05))
    assert verdict.sentence == (
        "frs helped: AP 35.0 against 30.0 for plain (+5.0). This closes 25% of the gap to the teacher."
    )
    assert "gap" not in judge("frs", [0.35], plain=[0.3]).sentence  # the teacher is not among the runs
    assert "gap" not in judge("frs", [0.35], plain=[0.3], teacher=[0.25]).sentence  # or is not better


def test_did_not_help():
    verdict = judge("frs", [0.28], plain=[0.3], teacher=[0.5])
    assert (verdict.kind, verdict.gain) == ("worse", pytest.approx(-0.02))
    assert verdict.sentence == "frs did not help: AP 28.0 against 30.0 for plain (-2.0)."


def test_a_difference_that_rounds_to_nothing_is_none():
    verdict = judge("frs", [0.3003], plain=[0.3001], teacher=[0.5])
    assert verdict.kind == "no difference"
    assert verdict.sentence == "frs made no difference: AP 30.0 against 30.0 for plain."


@pytest.mark.parametrize(("gain", "kind"), [(0.01, "no difference"), (0.03, "helped"), (-0.03, "worse")])
def test_a_difference_within_the_spread_over_the_seeds_is_none(gain, kind):
    verdict = judge("frs", [0.30 + gain, 0.34 + gain], plain=[0.30, 0.34], plain_name="plain: equal")
    assert (verdict.kind, verdict.gain) == (kind, pytest.approx(gain))
    assert f"({100 * gain:+.1f})" in verdict.sentence
    assert "32.0 (mean of 2 runs) for plain: equal" in verdict.sentence
    assert ("within the spread over the seeds" in verdict.sentence) == (kind == "no difference")


def test_without_a_plain_student_or_ap_nothing_is_claimed():
    alone = judge("frs", [0.3], None, teacher=[0.5])
    undefined = [judge("frs", [math.nan], plain=[0.3]), judge("frs", [0.3], plain=[math.nan])]
    assert {(verdict.kind, verdict.gain) for verdict in (alone, *undefined)} == {("unknown", None)}
    assert "The gain of frs cannot be computed: no plain student of the same detector" in alone.sentence
    assert "frs reaches AP 30.0" in alone.sentence
    assert [text in each.sentence for text, each in zip(("for frs", "for plain"), undefined, strict=True)] == [True] * 2
