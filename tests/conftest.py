"""What every test shares: one thread (steadier on shared machines), and the real photos where they are."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and reference values beside the project; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data: {SHARED} is absent")
    return SHARED
