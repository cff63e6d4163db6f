"""Peak memory of a detector, in a fresh process: what loading and running it adds to the idle libraries.

Run as a module, this file is that process.
"""

import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

CALLS = 3
"""Images that the process detects objects in: the first call allocates, later ones show whether more is needed."""


def peak_memory(path: Path, library: str | None, threads: int, image: np.ndarray, size: tuple[int, int]) -> int | None:
    """Return the bytes by which the resident memory of a process grows at most while it loads and runs a detector.

    Measured from the moment at which Python, PyTorch and the file's runtime are loaded. Code of the libraries that
    the detector is the first to use is included.

    Args:
        path: a checkpoint, a run folder or an exported file.
        library: of an exported file, see :func:`.open_runnable`.
        threads: of the arithmetic.
        image: (N, 3, H, W) float32 in 0..1.
        size: height and width of the images without padding.

    Returns:
        The bytes; None where the system does not tell (only Linux does), or the process failed.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.npy"
        np.save(file, image)
        task = {"path": str(path), "library": library, "threads": threads, "image": str(file), "size": size}
        command = [sys.executable, "-m", __name__, json.dumps(task)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    last = done.stdout.strip().rpartition("\n")[2]
    return int(last) if done.returncode == 0 and last.isdecimal() else None


def measure(task: dict[str, Any]) -> int:
    """Measure this process; see :func:`peak_memory`."""
    import torch

    from understudy.evaluation.models import is_exported, library_of, open_runnable

    torch.set_num_threads(task["threads"])
    if is_exported(task["path"]):
        import_module(task["library"] or library_of(task["path"]))
    image, size = torch.from_numpy(np.load(task["image"])), tuple(task["size"])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    idle = _resident("VmHWM")
    detector = open_runnable(task["path"], "cpu", threads=task["threads"], library=task["library"])
    for _ in range(CALLS):
        detector.runtime(image, [size] * len(image))
    return _resident("VmHWM") - idle


def _resident(name: str) -> int:
    """Return a number of ``/proc/self/status`` in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    print(measure(json.loads(sys.argv[1])))
