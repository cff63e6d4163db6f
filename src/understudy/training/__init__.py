"""Training runs: assembling one, its folder, a training step, the learning rate, and Lightning's callbacks."""

import os

for _name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
    # Lightning converts them to numbers when it is imported. One that is no number is nobody's rank.
    if not os.environ.get(_name, "0").isdecimal():
        del os.environ[_name]
