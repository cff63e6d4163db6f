"""Compute the parameters and multiply-adds of every detector, which `understudy detectors` lists.

    python benchmarks/sizes.py

Writes them into the package, as [parameters, multiply-adds]; takes about two minutes.
"""

import json

from understudy.detectors import DETECTORS
from understudy.listing import SIZES, detector_size


def main() -> None:
    """Compute and write all sizes."""
    rows = [f"  {json.dumps(name)}: {json.dumps(detector_size(name))}" for name in DETECTORS]
    SIZES.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
