"""A file that a command cannot write completely is not left behind, and replaces none."""

from pathlib import Path

import pytest

from understudy.cli import main

resource = pytest.importorskip("resource")


@pytest.fixture
def little_room(tmp_path):
    """A limit of the system: no file may grow beyond 4 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("check {scenes} --sheet {out}/sheet.png --force", "sheet.png"),
        ("compare {run} --html {out}/page.html --force", "page.html"),
        ("predict {run} {scenes}/images -o {out}/new", "new/detections.json"),
        ("export {run} {out}/new", "new/weights.pt"),
        ("analyse errors {run} -o {out} --force", "errors.html"),
    ],
    ids=["sheet", "page", "detections", "student", "page of a result"],
)
def test_files_are_written_completely_or_not_at_all(
    command, written, scenes, trained, tmp_path, little_room, monkeypatch, capsys
):
    monkeypatch.setattr("understudy.compare.table.with_speeds", lambda rows, device: (rows, "not measured"))
    out = tmp_path / "out"
    out.mkdir()
    for name in ("sheet.png", "page.html", "errors.html"):
        (out / name).write_text("older")
    with pytest.raises(SystemExit) as stop:
        main(command.format(run=trained, scenes=scenes, out=out).split())
    assert stop.value.code == 1
    previous = " The previous version is unchanged." if (out / written).exists() else ""
    assert f"Error: Could not write {out / written} (File too large).{previous}\n" in capsys.readouterr().err
    left = {file.relative_to(out): file.read_text() for file in out.rglob("*") if file.is_file()}
    assert left == {Path(name): "older" for name in ("sheet.png", "page.html", "errors.html")}
