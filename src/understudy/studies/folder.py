"""The files of a study."""

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from understudy.errors import UserError
from understudy.evaluation.resampling import Matches
from understudy.files import write_atomically
from understudy.reading import read_json
from understudy.studies.plan import Plan
from understudy.training.folder import RunFolder

FIRST_FILES = {".lock", ".study.yaml.part"}
"""What a start that was killed before it wrote the plan leaves behind."""


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """The folder of a study.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def plan(self) -> Path:
        """What is trained; it exists if the study has begun."""
        return self.path / "study.yaml"

    @property
    def facts(self) -> Path:
        """Version, fingerprints of the data and the teachers, costs of the steps, and the teachers' evaluations."""
        return self.path / "facts.json"

    @property
    def results(self) -> Path:
        """Every number of the study."""
        return self.path / "results.json"

    @property
    def table(self) -> Path:
        """The rows as CSV."""
        return self.path / "results.csv"

    @property
    def runs_table(self) -> Path:
        """The runs as CSV."""
        return self.path / "runs.csv"

    @property
    def page(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def run(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.path / "runs" / name)

    def failure(self, name: str) -> str | None:
        """Return why a run has failed; None if it has not."""
        file = self.path / "failed" / f"{name}.txt"
        return file.read_text().strip() if file.is_file() else None

    def note_failure(self, name: str, message: str) -> None:
        """Note that a run has failed."""
        (self.path / "failed").mkdir(exist_ok=True)
        write_atomically(self.path / "failed" / f"{name}.txt", f"{message}\n".encode())

    def forget_failures(self) -> None:
        """Let failed runs be tried again."""
        for file in (self.path / "failed").glob("*.txt"):
            file.unlink()

    def check_new(self) -> None:
        """Check that a new study can use the folder.

        Raises:
            UserError: it holds something else, or cannot be read.
        """
        try:
            found = {file.name for file in self.path.iterdir()}
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(
                f"The folder of the study, {self.path}, cannot be used: {error.strerror or error}."
            ) from error
        if found - FIRST_FILES:
            raise UserError(
                f"{self.path} is not empty and holds no study (there is no study.yaml). Choose a new folder."
            )

    def remove_if_unused(self) -> None:
        """Remove the folder of a study that could not begin, if it holds nothing else."""
        if not self.plan.exists():
            for name in FIRST_FILES:
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it was the user's, and is not empty
                self.path.rmdir()

    def write_plan(self, plan: Plan) -> None:
        """Write the plan."""
        write_atomically(self.plan, plan.dump().encode())

    def read_facts(self) -> dict[str, Any]:
        """Return the facts; an empty dict if there are none yet.

        Raises:
            UserError: the file is damaged.
        """
        return read_json(self.facts) if self.facts.exists() else {}

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write the facts."""
        write_atomically(self.facts, (json.dumps(facts, indent=2) + "\n").encode())

    def read_matches(self, name: str) -> Matches | None:
        """Return the matched detections of a run; None if there are none, or the file is damaged."""
        try:
            content = (self.path / "matches" / f"{name}.npz").read_bytes()
            with np.load(io.BytesIO(content)) as arrays:
                return Matches.from_arrays(dict(arrays))
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None

    def write_matches(self, name: str, matches: Matches) -> None:
        """Write the matched detections of a run."""
        content = io.BytesIO()
        np.savez_compressed(content, **matches.to_arrays())  # ty: ignore[invalid-argument-type]
        (self.path / "matches").mkdir(exist_ok=True)
        write_atomically(self.path / "matches" / f"{name}.npz", content.getvalue())
