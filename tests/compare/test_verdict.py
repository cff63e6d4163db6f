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
    verdict = judge("frs", [0.35, 0.35], plain=[0.3, 0.3], teacher=[0.5])
    assert (verdict.kind, verdict.gain) == ("helped", pytest.approx(0.05))
    assert verdict.sentence == (
        "frs helped: AP 35.0 (mean of 2 runs) against 30.0 (mean of 2 runs) for plain (+5.0). This closes 25% of the "
        "gap to the teacher."
    )
    assert "gap" not in judge("frs", [0.35] * 2, plain=[0.3] * 2).sentence  # the teacher is not among the runs
    assert "gap" not in judge("frs", [0.35] * 2, plain=[0.3] * 2, teacher=[0.25]).sentence  # or is not better


@pytest.mark.parametrize(("distilled", "plain"), [([0.4], [0.3]), ([0.4], [0.3, 0.31]), ([0.4, 0.41], [0.3])])
def test_one_seed_cannot_tell(distilled, plain):
    verdict = judge("frs", distilled, plain, teacher=[0.5])
    assert verdict.kind == "one seed"
    assert verdict.gain == pytest.approx(0.1, abs=0.006)
    assert f"({100 * verdict.gain:+.1f})" in verdict.sentence
    assert "one seed cannot tell" in verdict.sentence
    assert ("only one run of plain and frs" in verdict.sentence) == (len(distilled) == len(plain) == 1)
    assert "helped" not in verdict.sentence


def test_the_difference_is_that_of_the_printed_numbers():
    """34.96 and 30.04 are printed as 35.0 and 30.0: their difference is 5.0, not 4.9."""
    verdict = judge("frs", [0.3496, 0.3496], plain=[0.3004, 0.3004])
    assert verdict.gain == 0.05
    assert "35.0 (mean of 2 runs) against 30.0 (mean of 2 runs) for plain (+5.0)" in verdict.sentence


def test_seeds_that_are_paired_are_compared_seed_by_seed():
    unpaired, paired = (judge("frs", [0.31, 0.35], plain=[0.30, 0.34], paired=paired) for paired in (False, True))
    assert (unpaired.kind, paired.kind) == ("no difference", "helped")
    assert paired.gains == pytest.approx((0.01, 0.01))
    assert "(+1.0 ±0.0 over 2 paired seeds)" in paired.sentence


def test_did_not_help():
    verdict = judge("frs", [0.28] * 3, plain=[0.3] * 2, teacher=[0.5])
    assert (verdict.kind, verdict.gain) == ("worse", pytest.approx(-0.02))
    assert verdict.sentence == (
        "frs did not help: AP 28.0 (mean of 3 runs) against 30.0 (mean of 2 runs) for plain (-2.0)."
    )


def test_a_difference_that_rounds_to_nothing_is_none():
    verdict = judge("frs", [0.3003] * 2, plain=[0.3001] * 2, teacher=[0.5])
    assert (verdict.kind, verdict.gain) == ("no difference", 0.0)
    assert verdict.sentence.startswith("frs made no difference: AP 30.0 ")


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
