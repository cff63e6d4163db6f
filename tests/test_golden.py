"""The output of the command line, compared with the files in tests/golden.

After an intended change, ``pytest tests/test_golden.py --update-golden`` rewrites these files; review their diff.
"""

import shlex
from pathlib import Path

import pytest

from understudy.cli import app, main
from understudy.cli.analyse import analyse

GOLDEN = Path(__file__).with_name("golden")
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if not command.hidden]
ANALYSES = [f"analyse {command.callback.__name__}" for command in analyse.registered_commands]

CASES = {
    "help": ["--help", *(f"{command} --help" for command in [*COMMANDS, "analyse", *ANALYSES])],
    "config_train": ["config train"],
    "config_distill": ["config distill"],
    "errors_in_keys": [
        "train run=runs/a data=photos optimizer.lrr=0.1",
        "train run=runs/a data=photos data.batch_size=8",
        "train run=runs/a data=photos data.qqq=1",
        "train run=runs/a data=photos teacher=runs/t",
        "train run=runs/a data=photos data.shorter_side.4=640",
        "train run=runs/a data=photos 'data.shorter_side=[640, big]'",
        "train run=runs/a data=photos 'log_every=['",
        "distill data.flip=3 optimizer=adam seed=-1 epochs:5 precision=64",
        "distill -c broken.yaml",
        "distill -c twice.yaml",
        "distill -c absent.yaml",
        "distill -c partial.yaml",
        "distill run=runs/s data=photos teacher=runs/t --method frs methods.pkd.levels=1",
        "distill run=runs/s data=photos teacher=runs/t --method frs methods=pkd",
        "distill run=runs/s data=photos teacher=runs/t 'methods=[frs, frs]'",
    ],
    "errors_in_arguments": [
        "distil",
        "train --lr 0.1",
        "train --confg=a.yaml",
        "train photos",
        "evaluate",
        "predict runs/a photos -o found --score 3",
        "config tran",
        "methods frs --short",
        "analyse",
        "analyse nonsense",
        "analyse regions --threshold 3",
        "analyse teachers",
    ],
    "methods": ["methods --short", "methods"],
    "method": ["methods frs"],
    "detectors": ["detectors", "detectors gfl_mobilenet_v2 width_mult=0.5 num_classes=20"],
    "recipes": ["recipes", "recipes dist2-fcos-mnv2-nonlocal"],
    "errors_in_names": [
        "recipes frs-retina-r50",
        "recipes frs-fcos-r50 frs-gfl-r50",
        "methods fsr",
        "methods frs,pfi",
        "methods :X",
        "detectors fcos_resnet1B",
    ],
}
"""Command lines by the name of the file that contains their output, ``tests/golden/<name>.txt``."""

FILES = {
    "broken.yaml": "run: runs/s\ndata: [photos\n",
    "twice.yaml": "methods:\n  frs: {}\n  frs: {threshold: 0.1}\n",
    "partial.yaml": "run: runs/s\n",
}
"""Config files that the command lines read."""


@pytest.mark.parametrize("name", CASES)
def test_output_is_as_recorded(name, request, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    for file, content in FILES.items():
        Path(file).write_text(content)
    output = "\n".join(_transcript(line, capsys) for line in CASES[name])
    golden = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(output)
    command = "pytest tests/test_golden.py --update-golden"
    assert golden.exists(), f"{golden} does not exist: run `{command}`"
    assert output == golden.read_text(), f"{golden} differs: if the change is intended, run `{command}`"


def _transcript(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line; return it with its output and a failure's exit code."""
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line))
    output = capsys.readouterr()
    code = f"[exit code {stop.value.code}]\n" if stop.value.code else ""
    return f"$ understudy {line}\n{output.out}{output.err}{code}"
