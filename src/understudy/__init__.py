"""Distil object detectors: train a small student with a large teacher.

The names in ``__all__`` are public. Each is imported on first use, so ``import understudy`` is fast::

    import understudy

    teacher = understudy.train(data="photos", run="runs/teacher")
    student = understudy.distill(
        data="photos", run="runs/student", teacher=teacher, detector="gfl_resnet18", methods="frs"
    )
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from understudy import functional
    from understudy.balance import Balance
    from understudy.checkpoints import import_checkpoint, load_checkpoint
    from understudy.config import Source
    from understudy.data import open_data
    from understudy.detectors import Detector, build_detector, open_detector, with_larger_images
    from understudy.diagnosis import Diagnosis
    from understudy.errors import RunError, UserError
    from understudy.learner import Learner
    from understudy.methods import METHODS
    from understudy.methods.base import Method
    from understudy.methods.loading import build_methods
    from understudy.outputs import Outputs, Spec, Truth
    from understudy.pairing import Pairing, pair
    from understudy.quantisation import Quantiser
    from understudy.studies.results import StudyResult
    from understudy.training.suggestion import Suggestion

    __version__: str

__all__ = [
    "METHODS",
    "Balance",
    "Detector",
    "Learner",
    "Method",
    "Outputs",
    "Pairing",
    "Quantiser",
    "RunError",
    "Spec",
    "Truth",
    "UserError",
    "__version__",
    "build_detector",
    "build_methods",
    "distill",
    "doctor",
    "functional",
    "import_checkpoint",
    "load_checkpoint",
    "open_data",
    "open_detector",
    "pair",
    "resume",
    "study",
    "suggest",
    "train",
    "with_larger_images",
]

_MODULES = {
    "METHODS": "methods",
    "Balance": "balance",
    "Detector": "detectors",
    "Learner": "learner",
    "Method": "methods.base",
    "Outputs": "outputs",
    "Pairing": "pairing",
    "Quantiser": "quantisation",
    "RunError": "errors",
    "Spec": "outputs",
    "Truth": "outputs",
    "UserError": "errors",
    "build_detector": "detectors",
    "build_methods": "methods.loading",
    "import_checkpoint": "checkpoints",
    "load_checkpoint": "checkpoints",
    "open_data": "data",
    "open_detector": "detectors",
    "pair": "pairing",
    "with_larger_images": "detectors",
}


def train(config: "Source" = None, **overrides: Any) -> "Path":
    """Train a detector, like ``understudy train``: a teacher, or a student without a teacher.

    Args:
        config: a YAML file, a mapping or a ``TrainConfig``; None: the defaults.
        overrides: config keys. Dotted keys are given in an unpacked dict:
            ``train(data="photos", run="runs/a", **{"optimizer.lr": 0.02})``.

    Returns:
        The run folder.

    Raises:
        UserError: the config or the data have faults; the message lists all of them.
        RunError: the run cannot continue.
    """
    from understudy.config import TrainConfig, load_config
    from understudy.training import run as training

    return training.train(load_config(TrainConfig, config, overrides))


def distill(config: "Source" = None, **overrides: Any) -> "Path":
    """Train a student with a teacher and distillation methods, like ``understudy distill``.

    Args:
        config: a YAML file, a mapping or a ``DistillConfig``; None: the defaults.
        overrides: config keys, as in :func:`train`.

    Returns:
        The run folder.

    Raises:
        UserError: the config, data, teacher or methods have faults; the message lists all of them.
        RunError: the run cannot continue.
    """
    from understudy.config import DistillConfig, load_config
    from understudy.training import run as training

    return training.distill(load_config(DistillConfig, config, overrides))


def resume(run: "str | Path", methods: "Sequence[str]" = (), *, accept_changes: bool = False) -> "Path":
    """Continue an interrupted run exactly where it stopped, like ``understudy resume``.

    Args:
        run: the run folder.
        methods: your own methods of the run, ``package.module:Class``. They are imported, so a run that uses any is
            continued only if they are named.
        accept_changes: continue with other data or another teacher than at the start.

    Returns:
        The run folder.

    Raises:
        UserError: the folder does not contain a run that can be continued.
        RunError: the run cannot continue.
    """
    from pathlib import Path

    from understudy.training import run as training

    return training.resume(Path(run), methods, accept_changes=accept_changes)


def suggest(config: "Source" = None, **overrides: Any) -> "Suggestion":
    """Return what a run would choose for data and machine, and why, like ``understudy suggest``.

    Args:
        config: a YAML file, a mapping or a config, as in :func:`train` or, with a teacher, :func:`distill`.
        overrides: config keys, as in :func:`train`; ``run`` is not needed.

    Returns:
        The complete config (``config``), the reasons by key (``reasons``), and time and memory (``cost``). Nothing is
        trained, written or downloaded.

    Raises:
        UserError: the config or the data have faults; the message lists all of them.
    """
    from understudy.training import suggestion

    return suggestion.suggest(config, overrides)


def doctor(
    config: "Source" = None,
    *,
    plain: "str | Path | None" = None,
    images: int | None = None,
    steps: int | None = None,
    **overrides: Any,
) -> "Diagnosis":
    """Find what is wrong with a pair before it is trained, or why a run did not help, like ``understudy doctor``.

    Args:
        config: a YAML file, a mapping or a ``DistillConfig``, as in :func:`distill`, of a run that is planned; or the
            folder of a run, whose log is explained. Nothing is written.
        plain: the same student trained without a teacher: its run folder, or before training also a checkpoint.
        images: validation images on which the teacher is measured; None: 100.
        steps: steps in which the student is trained on one batch; None: 30.
        overrides: config keys, as in :func:`train`.

    Returns:
        The findings; ``ok`` is whether none of them is fatal.

    Raises:
        UserError: the config has faults, or a path does not exist.
    """
    from pathlib import Path

    from understudy.errors import UserError

    beside = None if plain is None else Path(plain)
    if isinstance(config, str | Path) and Path(config).is_dir():
        if overrides or images is not None or steps is not None:
            raise UserError(f"{config} is a run folder, whose log is read: it takes no config keys, images or steps.")
        from understudy.diagnosis.afterwards import explain

        return explain(Path(config), beside)
    from understudy.config import load_config
    from understudy.diagnosis.before import IMAGES, STEPS, PairConfig, examine

    pair = load_config(PairConfig, config, overrides)
    return examine(pair, beside, images=IMAGES if images is None else images, steps=STEPS if steps is None else steps)


def study(
    folder: "str | Path",
    config: "Source" = None,
    *,
    rows: "Sequence[str]" = (),
    seeds: "Sequence[int]" = (0, 1, 2),
    teachers: "Sequence[str | Path]" = (),
    steps: int | None = None,
    minutes: float | None = None,
    longer: bool = True,
    together: bool = False,
    jobs: int = 1,
    **overrides: Any,
) -> "StudyResult":
    """Compare methods over seeds, like ``understudy study``.

    Args:
        folder: a new folder, or that of the same study, which goes on.
        config: as for :func:`distill`, without a run folder.
        rows: methods with their options, as ``"frs feature_weight=0.001"``; the plain student is added.
        seeds: of each row.
        teachers: if there are several; otherwise the config key ``teacher``.
        steps: of each run; None: ``schedule.epochs``.
        minutes: of each run, instead of steps.
        longer: add the plain student that is trained for as long in time as the slowest row.
        together: train the runs of a seed side by side.
        jobs: processes that train at once.
        overrides: config keys.

    Returns:
        The results; ``to_dict()`` is what ``results.json`` holds.

    Raises:
        UserError: a fault of the study or its config, or the folder holds another study.
    """
    from pathlib import Path

    from understudy.studies.plan import Plan
    from understudy.studies.running import run_study

    named = [Path(teacher) for teacher in teachers]
    budget: dict[str, Any] = {"steps": steps, "minutes": minutes, "longer": longer}
    plan = Plan.of(config, overrides, rows=rows, seeds=seeds, teachers=named, **budget)
    return run_study(Path(folder), plan, together=together, jobs=jobs, trusted=plan.own_methods)


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
