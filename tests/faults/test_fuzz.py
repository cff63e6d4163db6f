"""Random changes of annotation files, configs, CSV files and checkpoints end in a message or in success.

The suite tries a few changes, the same in each run. `UNDERSTUDY_FUZZ=20 pytest tests/faults/test_fuzz.py` tries 80
times as many, and others in each run.
"""

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from data_sets import coco, voc_xml
from faults.running import SECONDS, alarm, called, contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.checkpoints import load_checkpoint
from understudy.checkpoints.unpickle import read_foreign
from understudy.compare.runs import read_runs
from understudy.errors import UserError
from understudy.report.views import view_run
from understudy.training.resuming import read_resumable

TIMES = int(os.environ.get("UNDERSTUDY_FUZZ", "0"))


def fuzzed(examples: int) -> settings:
    return settings(
        max_examples=examples * TIMES or max(1, examples // 4),
        deadline=None,
        derandomize=not TIMES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def denormal_numbers():
    """Hypothesis draws them; a training run of this process has switched them off."""
    torch.set_flush_denormal(False)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 2**63, 1e308])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["/etc/passwd", "../../..", "[/b]", "\x1b[31m", "\ud800", "a\0b", "nan", "1e999", "x" * 5000])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
byte_changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4)
pieces = [
    "[",
    "{",
    "&a ",
    "*a",
    "- ",
    ": ",
    "\n",
    "\t",
    "'",
    '"',
    "!!python/name:os",
    "\0",
    "<",
    "&x;",
    ",",
    "1e999",
    "\x1b",
]
text_changes = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(pieces) | st.text(max_size=6)),
    min_size=1,
    max_size=4,
)


def changed(content: Any, changes: list) -> Any:
    """Replace parts of a text or of bytes: at a place (0..1), a number of characters by others."""
    for place, count, new in changes:
        start = int(place * len(content))
        content = content[:start] + new + content[start + count :]
    return content


def replaced(content: Any, draw: st.DataObject) -> Any:
    """Replace one value, at any depth, of nested lists and dicts."""
    content = copy.deepcopy(content)
    node = content
    while True:
        keys = sorted(node, key=str) if isinstance(node, dict) else list(range(len(node)))
        key = draw.draw(st.sampled_from(keys))
        inner = node[key]
        if not isinstance(inner, list | dict) or not inner or draw.draw(st.booleans()):
            node[key] = draw.draw(values)
            return content
        node = inner


@contextmanager
def folder() -> Iterator[Path]:
    """A folder beside a file that must stay as it is."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "outside.txt").write_text("mine")
        (Path(name) / "inside").mkdir()
        yield Path(name) / "inside"
        assert sorted(path.name for path in Path(name).iterdir()) == ["inside", "outside.txt"]


def ends_well(line: str, place: Path) -> None:
    """Run a command; it must end in success or a message, and change nothing."""
    before = contents(place)
    code, output = called(line, place)
    assert code in (0, 1, 2), output
    assert "Traceback" not in output
    assert contents(place) == before


def survives(function: Any, *args: Any, **options: Any) -> None:
    """Call a function that reads a file; it must return or raise a message for the user."""
    with alarm(SECONDS), contextlib.suppress(UserError):
        function(*args, **options)


# --- annotations ------------------------------------------------------------------------------------------------------


def write(text: str | bytes, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass"))


@fuzzed(60)
@given(st.data())
def test_values_of_coco(data_bases, data):
    with folder() as place:
        write(json.dumps(replaced(coco(), data)), place / "data/train/_annotations.coco.json")
        shutil.copy(data_bases["photos"] / "a.jpg", place / "data/train/a.jpg")
        ends_well("check data", place)


VOC = voc_xml([("cat", (10, 20, 40, 60))])
YAML = "train: images/train\nval: images/train\nnames:\n  0: cat\n  1: dog\nnc: 2\npath: .\n"
ANNOTATIONS = {
    "train/_annotations.coco.json": json.dumps(coco()),
    "train/a.xml": VOC,
    "labels/train/a.txt": "0 0.5 0.5 0.1 0.1\n1 0.2 0.2 0.1 0.1\n",
    "data.yaml": YAML,
    "train.txt": "images/train/a.jpg\n",
    "classes.txt": "cat\ndog\n",
}


@pytest.mark.parametrize("name", ANNOTATIONS)
@fuzzed(25)
@given(changes=text_changes)
def test_text_of_annotations(data_bases, name, changes):
    with folder() as place:
        for image in ("data/train/a.jpg", "data/images/train/a.jpg"):
            (place / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data_bases["photos"] / "a.jpg", place / image)
        write("0 0.5 0.5 0.1 0.1\n", place / "data/labels/train/a.txt")
        write(changed(ANNOTATIONS[name], changes), place / "data" / name)
        ends_well("check data", place)


# --- configs and run folders ------------------------------------------------------------------------------------------


@fuzzed(60)
@given(st.data())
def test_values_of_configs(distilled, data):
    config = yaml.safe_load((distilled / "config.yaml").read_text())
    with folder() as place:
        write(json.dumps(replaced(config, data)), place / "a.yaml")  # JSON is YAML
        ends_well("distill -c a.yaml data=absent run=new teacher=absent", place)


@fuzzed(60)
@given(changes=text_changes)
def test_text_of_configs(distilled, changes):
    with folder() as place:
        write(changed((distilled / "config.yaml").read_text(), changes), place / "a.yaml")
        ends_well("distill -c a.yaml data=absent run=new teacher=absent", place)


@fuzzed(60)
@given(argument=st.sampled_from(["data=", "optimizer=", "methods=", "data.flip=", "run="]), text=st.text(max_size=20))
def test_arguments(argument, text):
    with folder() as place:
        given = (argument + text).replace("\0", " ").replace("'", "")
        ends_well(f"distill '{given}' data.train=absent teacher=absent", place)


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "environment.json", "losses.csv", "metrics.csv"])
@fuzzed(25)
@given(changes=text_changes)
def test_text_of_a_run(distilled, name, changes):
    with folder() as place:
        for file in ("config.yaml", "result.json", "environment.json", "losses.csv", "metrics.csv"):
            shutil.copy(distilled / file, place / file)
        write(changed((place / name).read_text(), changes), place / name)
        survives(read_runs, [place])
        survives(view_run, place, name="a", group="a", role="distilled")


@fuzzed(60)
@given(st.data())
def test_values_of_a_result(distilled, data):
    with folder() as place:
        shutil.copy(distilled / "config.yaml", place)
        write(json.dumps(replaced(json.loads((distilled / "result.json").read_text()), data)), place / "result.json")
        survives(read_runs, [place])


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
@fuzzed(25)
@given(changes=byte_changes)
def test_bytes_of_checkpoints(distilled, name, changes):
    with folder() as place:
        write(changed((distilled / name).read_bytes(), changes), place / name)
        for read in (load_checkpoint, read_resumable, read_foreign):
            survives(read, place / name)


@fuzzed(15)
@given(st.data())
def test_metadata_of_checkpoints(distilled, data):
    content = torch.load(distilled / "best.ckpt", weights_only=True)
    with folder() as place:
        torch.save(content | {"understudy": replaced(content["understudy"], data)}, place / "best.ckpt")
        survives(load_checkpoint, place)
        survives(read_resumable, place / "best.ckpt")
