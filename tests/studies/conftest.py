"""A tiny study that several tests read."""

from pathlib import Path
from typing import Any

import pytest

import understudy
from understudy.studies.plan import Plan
from understudy.studies.running import run_study


@pytest.fixture(scope="session")
def tiny(tiny) -> dict[str, Any]:
    """Keys of a run of 2 epochs of 4 steps, whose AP grows with every epoch."""
    return tiny | {"schedule.epochs": 2, "optimizer.name": "adamw", "optimizer.lr": 0.003}


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Path:
    """The teacher."""
    return understudy.train(tiny, run=tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture(autouse=True, scope="session")
def cheap():
    """Few bootstrap samples, few rounds of timing, and no page, which takes longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("understudy.studies.running.write_page", lambda *_: None)
        patch.setattr("understudy.studies.summary.SAMPLES", 30)
        patch.setattr("understudy.studies.timing.ROUNDS", 1)
        patch.setattr("understudy.studies.timing.FEWEST", 1)
        yield


@pytest.fixture(scope="session")
def plan(tiny, trained) -> Plan:
    """Two rows and two seeds."""
    return Plan.of(tiny, {"data.flip": 0.0}, rows=["frs ramp_steps=0"], seeds=[0, 1], teachers=[trained], longer=False)


@pytest.fixture(scope="session")
def study(plan, tmp_path_factory) -> Path:
    """The folder of a finished study; not to be changed."""
    folder = tmp_path_factory.mktemp("studies") / "study"
    run_study(folder, plan, together=True)
    return folder
