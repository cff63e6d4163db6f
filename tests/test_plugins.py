"""An installed package adds a family of detectors and a method by entry points, without an edit here.

``plugin/`` is laid out as pip installs a package: a folder of code, and one of metadata. It is on the path of the
processes that are started here, and of no other test.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from understudy import plugins

PLUGIN = Path(__file__).parent / "plugin"

pytestmark = pytest.mark.slow


def run(code: str, *arguments: object, cwd: Path) -> str:
    """Run a program with the plugin installed; warnings are errors, as in the tests."""
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN), "COLUMNS": "80"}
    command = [sys.executable, "-W", "error::UserWarning:understudy", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


TRAIN = """
import json, sys
import torch
import understudy
from understudy.cli import main
from understudy.detectors.build import detector_names

torch.set_num_threads(1)
scenes, folder, keys = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
assert {"tinyyolo_d33_w25", "tinyyolo_d67_w50"} <= set(detector_names())
small, large = (understudy.build_detector(f"tinyyolo_{name}", 3, neck_channels=16) for name in ("d33_w25", "d67_w50"))
bodies = [detector.network.backbone.body for detector in (small, large)]
layers = [sum(isinstance(layer, torch.nn.Conv2d) for layer in body.modules()) for body in bodies]
print(json.dumps({"spec": [small.spec.points, small.spec.box_code, small.spec.box_size], "layers": layers}))
keys |= {"data.path": scenes, "schedule.epochs": 1}
teacher = understudy.train(keys, run=f"{folder}/teacher", detector={"name": "tinyyolo_d67_w50", "neck_channels": 24})
methods = {"channel_means": {"scale": 2.0}, "frs": {}, "hint": {}}
student = {"name": "tinyyolo_d33_w25", "neck_channels": 16}
understudy.distill(keys, run=f"{folder}/student", detector=student, teacher=teacher, methods=methods, balance="off")
lists = [["methods", "--short"], ["methods", "channel_means"]]
for words in [["export", f"{folder}/student", f"{folder}/deploy"], *lists]:
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code
for name in [name for name in sys.modules if name.partition(".")[0] in ("understudy", "tiny_plugin")]:
    sys.modules[name] = None  # an exported student needs neither
sys.path.insert(0, f"{folder}/deploy")
from detector import load
model, classes = load(f"{folder}/deploy")
assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) > 0
"""


def test_a_family_and_a_method_of_another_package(scenes, tiny, tmp_path):
    keys = {key: value for key, value in tiny.items() if not key.startswith("detector.")}
    said = run(TRAIN, scenes, tmp_path, json.dumps(keys), cwd=tmp_path)
    facts = json.loads(said.splitlines()[0])
    assert facts["spec"] == [True, "distributions", 36]
    assert facts["layers"][0] < facts["layers"][1]
    losses = (tmp_path / "student" / "losses.csv").read_text().splitlines()
    assert {"channel_means_mean", "frs_feature", "hint_feature", "loss_class"} <= set(losses[0].split(","))
    row = dict(zip(losses[0].split(","), losses[-1].split(","), strict=True))
    assert float(row["channel_means_mean"]) > 0
    config = (tmp_path / "student" / "config.yaml").read_text()
    assert "feature_weight: 0.5" in config  # FRS' weight, from the family's entry
    assert "Installed plugins:\n  channel_means   The mean of every channel" in said
    assert "methods.channel_means.scale=1.0\n      Multiplies the differences. (a number above 0)" in said
    assert "detectors: " not in said.partition("Students (rows)")[2].partition("\n\n")[0]


class Entry:
    """Stands for an entry point."""

    group, dist = "understudy.methods", None

    def __init__(self, name: str, found: object):
        self.name, self.value, self.found = name, f"package:{name}", found

    def load(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_a_plugin_that_fails_is_left_out_with_a_warning(monkeypatch):
    entries = [Entry("frs", 1), Entry("broken", ImportError("no such module")), Entry("good", 3)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries)
    with pytest.warns(UserWarning, match="The plugin") as warned:
        assert plugins.load_plugins("understudy.methods", {"frs": 0}) == {"good": 3}
    assert [str(warning.message) for warning in warned] == [
        "The plugin frs = package:frs (understudy.methods) is left out: the name 'frs' is taken.",
        "The plugin broken = package:broken (understudy.methods) cannot be loaded: ImportError: no such module",
    ]
