"""Pairs of a teacher and students, for analyses that compare their records cell by cell."""

from collections.abc import Callable, Sequence

from understudy.analysis.models import Model
from understudy.errors import UserError
from understudy.evaluation import aliases_of
from understudy.outputs import Spec
from understudy.pairing import Pairing, pair


def pair_models(
    teacher: Model, students: Sequence[Model], what: str, obstacles: Callable[[Spec, Spec], Sequence[str]]
) -> list[Pairing]:
    """Pair each student with the teacher, for an analysis.

    Args:
        teacher: the teacher.
        students: at least one.
        what: the analysis, a command of `understudy analyse`.
        obstacles: function that returns, for the reduced Specs of student and teacher, why they cannot be compared.

    Raises:
        UserError: there are no students, or they cannot be compared with the teacher; all reasons are listed.
    """
    if not students:
        raise UserError(f"No student to compare with the teacher: understudy analyse {what} TEACHER STUDENT...")
    pairings, faults = [], []
    for student in students:
        specs = student.detector.spec, teacher.detector.spec
        try:
            found = pair(*specs, student.checkpoint.classes, teacher.checkpoint.classes, aliases_of(student.checkpoint))
        except UserError as error:
            faults.append(f"{student.name}: {error}".replace("\n  - ", " "))
            continue
        pairings.append(found)
        faults += [f"{student.name}: {reason}" for reason in obstacles(found.student, found.teacher)]
    if faults:
        raise UserError.listing(f"`understudy analyse {what}` cannot compare these with {teacher.name}:", faults)
    return pairings


def size_notes(teacher: Model, students: Sequence[Model]) -> list[str]:
    """Return a note if detectors get images of another size than in their own evaluation: the first student's."""
    size = students[0].size
    at_scale = (size[0] * teacher.scale, size[1] * teacher.scale)
    others = [
        model.name for model in (teacher, *students[1:]) if model.size != (at_scale if model is teacher else size)
    ]
    if not others:
        return []
    shorter, longer = size
    return [
        f"All detectors got images of {students[0].name}'s size (shorter side {shorter}, longer side at most {longer} "
        f"pixels). This is not the evaluation size of {', '.join(others)}."
    ]
