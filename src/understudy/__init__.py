"""Understudy distils object detectors: a small student learns its role from a large teacher.

The names below are the public ones. Each is imported when it is first used, so that ``import understudy`` is instant::

    import understudy

    teacher = understudy.train(data="photos", run="runs/teacher")
    student = understudy.distill(
        data="photos", run="runs/student", teacher=teacher, detector="retinanet_resnet18", methods="frs"
    )
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from understudy import functional
    from understudy.checkpoints import import_checkpoint, load_checkpoint
    from understudy.config import Source
    from understudy.data import open_data
    from understudy.detectors import Detector, build_detector, open_detector
    from understudy.errors import RunError, UserError
    from understudy.learner import Learner
    from understudy.methods import METHODS, Method, build_methods
    from understudy.outputs import Outputs, Spec, Truth
    from understudy.pairing import Pairing, pair

    __version__: str

__all__ = [
    "METHODS",
    "Detector",
    "Learner",
    "Method",
    "Outputs",
    "Pairing",
    "RunError",
    "Spec",
    "Truth",
    "UserError",
    "__version__",
    "build_detector",
    "build_methods",
    "distill",
    "functional",
    "import_checkpoint",
    "load_checkpoint",
    "open_data",
    "open_detector",
    "pair",
    "resume",
    "train",
]

_MODULES = {
    "METHODS": "methods",
    "Detector": "detectors",
    "Learner": "learner",
    "Method": "methods",
    "Outputs": "outputs",
    "Pairing": "pairing",
    "RunError": "errors",
    "Spec": "outputs",
    "Truth": "outputs",
    "UserError": "errors",
    "build_detector": "detectors",
    "build_methods": "methods",
    "import_checkpoint": "checkpoints",
    "load_checkpoint": "checkpoints",
    "open_data": "data",
    "open_detector": "detectors",
    "pair": "pairing",
}


def train(config: "Source" = None, **overrides: Any) -> "Path":
    """Train a detector: a teacher, or a student without one. The same as ``understudy train``.

    Args:
        config: a YAML file, a mapping or a finished ``TrainConfig``; None starts from the defaults.
        overrides: keys of the config, whole sections or, in a dict that is unpacked, dotted:
            ``train(data="photos", run="runs/a", **{"optimizer.lr": 0.02})``.

    Returns:
        The run folder.

    Raises:
        UserError: listing every fault of the config, or saying what is wrong with the data.
        RunError: the run cannot go on.
    """
    from understudy import training
    from understudy.config import TrainConfig, load_config

    return training.train(load_config(TrainConfig, config, overrides))


def distill(config: "Source" = None, **overrides: Any) -> "Path":
    """Train a student with a teacher and distillation methods. The same as ``understudy distill``.

    Args:
        config: a YAML file, a mapping or a finished ``DistillConfig``; None starts from the defaults.
        overrides: keys of the config, as in :func:`train`.

    Returns:
        The run folder.

    Raises:
        UserError: listing every fault of the config, or saying what is wrong with the data, teacher or methods.
        RunError: the run cannot go on.
    """
    from understudy import training
    from understudy.config import DistillConfig, load_config

    return training.distill(load_config(DistillConfig, config, overrides))


def resume(run: "str | Path") -> "Path":
    """Go on with a run that was interrupted, exactly where it stopped. The same as ``understudy resume``.

    Args:
        run: the run folder.

    Returns:
        The run folder.

    Raises:
        UserError: it is not the folder of a run that can go on.
        RunError: the run cannot go on.
    """
    from pathlib import Path

    from understudy import training

    return training.resume(Path(run))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"understudy.{_MODULES[name]}"), name)
    if name == "functional":
        return import_module("understudy.functional")
    if name == "__version__":
        from importlib.metadata import version

        return version("understudy")
    raise AttributeError(f"module 'understudy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
