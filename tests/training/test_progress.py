"""The progress of a run: lines without a terminal, a bar in one."""

import errno
import io
import time

import pytest
from rich.console import Console
from rich.live import Live
from training_runs import at_step, crash

import understudy
from understudy.training import console
from understudy.training.progress import ShowProgress


def test_progress_without_a_terminal_is_lines(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ShowProgress, "SECONDS_BETWEEN_LINES", 0.0)
    understudy.train(tiny, run=tmp_path / "run", **{"schedule.epochs": 1})
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out
    assert len(lines) == 5
    assert lines[0].startswith("epoch 1/1  step 1/4  0 min left  total 2.")
    assert "bbox_ctrness 0." in lines[0]
    assert lines[-1].startswith("epoch   1  AP ")
    assert "\x1b" not in err


def test_the_bar_shows_every_loss_and_goes_away_when_a_run_fails(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "CONSOLE", Console(stderr=True, force_terminal=True, width=120))
    with (
        at_step(2, lambda: time.sleep(0.6)),  # long enough to be drawn
        at_step(3, crash),
        pytest.raises(ZeroDivisionError),
    ):
        understudy.train(tiny, run=tmp_path / "run")
    err = capsys.readouterr().err
    assert "epoch 1/2" in err
    assert "/8" in err
    assert "left" in err
    assert "bbox_ctrness 0." in err
    assert err.endswith("\x1b[2K")  # the bar's last line is wiped


class ClosedTerminal(io.StringIO):
    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    def isatty(self):
        return True


def test_a_run_goes_on_when_its_terminal_is_closed(monkeypatch):
    """As after SIGHUP, which is to save the run."""
    monkeypatch.setattr(console, "CONSOLE", Console(file=ClosedTerminal(), force_terminal=True))
    console.say("epoch 1")
    progress = ShowProgress()
    progress.live = Live("", console=console.CONSOLE)
    progress.teardown(None, None, "fit")
    assert progress.live is None
