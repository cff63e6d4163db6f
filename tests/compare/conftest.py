"""What tests of the comparison share: three runs, and the table as it is printed."""

import io

import pytest
from rich.console import Console
from run_folders import TEACHER, make_run


@pytest.fixture
def three(tmp_path):
    """A teacher, a plain student and a distilled student, with the gap half closed."""
    teacher = make_run(tmp_path / "teacher", 0.5, detector=TEACHER)
    plain = make_run(tmp_path / "plain", 0.3)
    distilled = make_run(tmp_path / "frs", 0.4, teacher=teacher / "best.ckpt")
    return [distilled, teacher, plain]


@pytest.fixture
def printed():
    """Prints something on a console of some width, and returns the text."""

    def printed(table, width: int) -> str:
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(table)
        return console.export_text()

    return printed
