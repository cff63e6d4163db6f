"""The findings of a diagnosis, and how they are shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Group
from rich.text import Text

from understudy.text import wrapped

Severity = Literal["fatal", "warning", "note", "ok"]

_INDENT = " " * 9
_STYLES = {"fatal": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of what was checked, e.g. ``"teacher"``.
        severity: ``"fatal"``: training would be worthless; ``"warning"``: it would probably be worse than it could be;
            ``"note"``: something to know, or that cannot be known; ``"ok"``: no fault.
        what: what was found, with its numbers.
        why: why it matters; empty for no fault.
        remedy: the command or the key that mends it; empty if there is none.
        likelihood: how probable this cause of a disappointing run is, 0 to 1; orders the findings of a finished run.
        facts: the numbers, for JSON.
    """

    check: str
    severity: Severity
    what: str
    why: str = ""
    remedy: str = ""
    likelihood: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return its values for JSON."""
        names = ("check", "severity", "what", "why", "remedy", "facts")
        return {name: value for name in names if (value := getattr(self, name))}

    def __rich__(self) -> Text:
        """Return its lines: severity and check, then what, why and the remedy."""
        others = [self.why, f"Remedy: {self.remedy}" if self.remedy else ""]
        lines = [wrapped(f"{self.check}: {self.what}", f"{self.severity:<9}", len(_INDENT))]
        shown = Text("\n".join([*lines, *(wrapped(line, _INDENT) for line in others if line)]))
        shown.stylize(_STYLES[self.severity], 0, len(self.severity))
        return shown


Tell = Callable[[Finding], None]
"""Is called with each finding as soon as it is known."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings about a pair, or about a finished run.

    Attributes:
        subject: what was examined, in words.
        findings: in the order of the checks; those of a finished run from the most to the least likely cause.
        seconds: time that the examination took.
        finished: whether a finished run was examined.
        listed: whether the findings were shown while they were found, so that only the verdict remains to be shown.
        outcome: what the distillation of a finished run brought, in a sentence; empty if that is not known.
        result: whether the student of a finished run is better than the plain one; empty if that is not known.
    """

    subject: str
    findings: tuple[Finding, ...]
    seconds: float
    finished: bool = False
    listed: bool = False
    outcome: str = ""
    result: Literal["", "better", "alike", "worse"] = ""

    @property
    def ok(self) -> bool:
        """Whether no finding is fatal."""
        return not self.of("fatal")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def verdict(self) -> str:
        """Say in one sentence what follows from the findings."""
        fatal, warnings = ([finding.check for finding in self.of(each)] for each in ("fatal", "warning"))
        if self.finished:
            return f"{self.outcome} {self._likely_causes()}".strip()
        if fatal:
            return f"Do not train like this: {_counted(fatal, 'fatal fault')}. {_also(warnings)}".strip()
        if warnings:
            return f"No fatal fault. {_also(warnings)}"
        return "No fault was found."

    def _likely_causes(self) -> str:
        likely = list(dict.fromkeys(each.check for each in self.findings if each.severity in ("fatal", "warning")))
        if not likely:
            return "The log shows no cause." if self.result == "worse" else "No fault was found."
        if self.result == "better":
            return f"Warnings: {', '.join(likely)}."
        return f"Most likely cause: {likely[0]}." + (f" Others: {', '.join(likely[1:])}." if likely[1:] else "")

    def to_dict(self) -> dict[str, Any]:
        """Return its values for JSON."""
        return {
            "subject": self.subject,
            "ok": self.ok,
            "verdict": self.verdict(),
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": round(self.seconds, 1),
        }

    def __rich__(self) -> Group:
        """Return the findings, unless they were shown before, and the verdict."""
        shown: Sequence[Finding] = () if self.listed else self.findings
        return Group(*shown, Text(f"\n{wrapped(f'{self.verdict()} ({self.seconds:.0f} s)')}"))


def _counted(checks: Sequence[str], what: str) -> str:
    names = ", ".join(dict.fromkeys(checks))
    return f"{len(checks)} {what}{'' if len(checks) == 1 else 's'} ({names})"


def _also(warnings: Sequence[str]) -> str:
    return f"{_counted(warnings, 'warning')}." if warnings else ""
