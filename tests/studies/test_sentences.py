"""What a study says about made-up numbers."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.compare.intervals import interval
from understudy.config import TrainConfig
from understudy.studies.results import ResultRow, StudyResult, Trained
from understudy.studies.rows import LONGER
from understudy.studies.sentences import notes_on, sentence_of, sentences_of
from understudy.studies.tables import NUMBERS, rows_as_csv, runs_as_csv
from understudy.training.folder import RunFolder


def row(name: str, aps: list[float], plain: list[float] | None = None, *, over_images=None, epochs=10) -> ResultRow:
    """A row with these APs, and those of the plain student of the same seeds."""
    differences = tuple(own - other for own, other in zip(aps, plain or [], strict=bool(plain)))
    config = TrainConfig(run=Path("run"), data={"path": "photos"})
    runs = {seed: Trained(name, seed, config, RunFolder(Path(f"{name}-{seed}")), None) for seed in range(len(aps))}
    return ResultRow(
        name=name,
        runs=runs,
        missing={},
        values={number: aps if number == "AP" else [math.nan] * len(aps) for number in NUMBERS},
        difference=interval(differences) if plain else None,
        over_images=over_images,
        to_longer=None,
        gap_closed=None,
        cost={"seconds": 0.1, "ratio": 1.0, "memory": 2**20, "steps": 5},
        epochs=epochs,
        differences=differences,
    )


NONE = [0.40, 0.41, 0.42]
PLAIN = row("none", NONE)


def result(plan, *rows: ResultRow, converged: float | None = 0.001, teacher: float = 0.5) -> StudyResult:
    teachers = {"star": {"AP": teacher}}
    return StudyResult((PLAIN, *rows), teachers, converged, 100, plan, {"longer": 1.5, "costs": {}})


@pytest.mark.parametrize(
    ("aps", "over_images", "kind", "words"),
    [
        ([0.43, 0.44, 0.451], (0.01, 0.05), "better", "better beyond noise"),
        ([0.37, 0.38, 0.389], (-0.05, -0.01), "worse", "worse beyond noise"),
        ([0.43, 0.44, 0.451], (-0.01, 0.05), "not told", "better on these images; on others it may differ"),
        ([0.41, 0.42, 0.44], (0.0, 0.02), "not told", "about 1 more seed would tell a difference of this size"),
        ([0.35, 0.41, 0.48], (-0.1, 0.1), "not told", "100 seeds would not tell it"),
    ],
)
def test_kinds_of_differences(plan, aps, over_images, kind, words):
    found = row("frs", aps, NONE, over_images=over_images)
    assert found.kind == kind
    assert words in (sentence_of(found) or "")
    advised = "What the log of a run shows: understudy doctor frs-0 none-0" in notes_on(result(plan, found))
    assert advised == (kind != "better")


def test_one_seed_cannot_tell():
    found = row("frs", [0.45], [0.40])
    assert found.kind == "unknown"
    assert sentence_of(found) == (
        "frs: +5.0 AP against none, from one seed. One seed cannot tell a difference from noise: add seeds."
    )


def test_a_teacher_that_is_no_better(plan):
    said = sentences_of(result(plan, teacher=0.40))[0]
    assert said.startswith("The teacher star has AP 40.0, the plain student 41.0: there is nothing to close.")
    assert "9.0 above the plain student" in sentences_of(result(plan))[0]


@pytest.mark.parametrize(
    ("converged", "words"),
    [
        (0.001, "The plain student had converged: the last fifth of its run brought +0.1 AP."),
        (0.02, "The plain student had not converged: the last fifth of its run brought +2.0 AP. Longer training"),
        (None, "Whether the plain student had converged is unknown"),
    ],
)
def test_whether_the_plain_student_had_converged(plan, converged, words):
    assert sentences_of(result(plan, converged=converged))[1].startswith(words)


def test_a_longer_run_that_is_better_shows_that_it_had_not_converged(plan):
    longer = row(LONGER, [0.43, 0.44, 0.451], NONE, over_images=(0.01, 0.05), epochs=15)
    found = result(plan, longer)
    assert sentences_of(found)[1].startswith(
        "The plain student had not converged: trained 1.5 x as long, it gains +3.0 AP"
    )
    assert any(note.startswith(f"{LONGER}: 1.50 x the epochs") for note in notes_on(found))


def test_missing_runs_are_in_the_sentences_and_the_tables(plan):
    broken = replace(row("frs", [], None), missing={1: "a loss was nan"})
    found = result(plan, broken)
    assert sentences_of(found)[-1] == "frs, seed 1: a loss was nan"
    assert runs_as_csv(found).splitlines()[-1].endswith("a loss was nan")
    assert rows_as_csv(found).splitlines()[2].startswith("frs,0,,")
    assert found.to_dict()["rows"][1]["AP"] == {"mean": None, "spread": None, "of_seeds": []}
