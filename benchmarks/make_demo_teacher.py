"""Train the teacher that comes with the package, and copy its run folder there, with weights in half precision.

python benchmarks/make_demo_teacher.py --work runs/demo_teacher
"""

import argparse
import shutil
from pathlib import Path

import torch
import yaml

import understudy
from understudy.checkpoints import read_checkpoint, write_checkpoint
from understudy.demo import make_teacher

SHIPPED = Path(understudy.__file__).parent / "demo_teacher"
FILES = ("config.yaml", "environment.json", "metrics.csv", "losses.csv", "result.json")


def main() -> None:
    """Train unless the work folder has a finished run, then copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/demo_teacher"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = options.work / "run"
    if not (run / "result.json").exists():
        make_teacher(run, options.work / "scenes")
    shutil.rmtree(SHIPPED, ignore_errors=True)
    SHIPPED.mkdir()
    for name in FILES:
        shutil.copy(run / name, SHIPPED / name)
    here = f"{Path.cwd()}/"  # runs have absolute paths, which do not exist on other machines
    config = SHIPPED / "config.yaml"
    config.write_text(config.read_text().replace(here, ""))
    content = read_checkpoint(run / "best.ckpt")
    content["understudy"]["config"] = yaml.safe_load(config.read_text())
    content["state_dict"] = {
        name: value.half() if value.is_floating_point() else value for name, value in content["state_dict"].items()
    }
    write_checkpoint(SHIPPED / "best.ckpt", content)
    print(f"{SHIPPED}: {sum(file.stat().st_size for file in SHIPPED.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
