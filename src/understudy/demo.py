"""The demo: draw scenes, train a plain and a distilled student, and compare them with each other and the teacher.

Both students have the same detector, data, order of images, number of steps and optimizer; only the distillation terms
differ. The teacher that comes with the package was trained by :func:`make_teacher` on more scenes and for more epochs;
its config and measurements are beside its weights.
"""

import json
import shutil
from collections.abc import Callable
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from understudy.compare.table import Table, summarise
from understudy.config import DistillConfig, TrainConfig, load_config
from understudy.data.scenes import make_scenes
from understudy.errors import RunError, UserError
from understudy.evaluation import evaluate
from understudy.export import export
from understudy.files import write_atomically
from understudy.report import report_on
from understudy.training.folder import RunFolder
from understudy.training.run import distill, train

SIZE = 96
"""Height and width of the scenes in pixels."""

TEACHER_SCENES, STUDENT_SCENES, VALIDATION_SCENES = 4000, 1700, 200
TEACHER_EPOCHS, STUDENT_EPOCHS = 12, 8
TEACHER_SEED = 1_000_000
"""Seed of the scenes that the teacher was trained on; the demo's own seeds are below it, so no scene is shared."""

RECIPE: dict[str, Any] = {
    "data": {"shorter_side": [SIZE], "longer_side": SIZE, "colour": 0.0, "scale": 1.0, "workers": 0},
    "optimizer": {"name": "adamw", "lr": 3e-3, "clip_norm": 10.0},
    "schedule": {"name": "cosine"},
    "ema": "off",
    "batch_size": 16,
    "evaluate_every": 1,
    "accelerator": "cpu",
    "log_every": 5,
}
UNTRAINED: dict[str, Any] = {"backbone_weights": None, "norm": "batch"}
TEACHER = {"name": "fcos_mobilenet_v2", "neck_channels": 64, **UNTRAINED}
STUDENT = {"name": "fcos_mobilenet_v2", "neck_channels": 32, "width_mult": 0.35, **UNTRAINED}
METHODS: dict[str, dict[str, Any]] = {"frs": {"ramp_steps": 100}}


def run_demo(
    output: str | Path, seed: int = 0, train_teacher: bool = False, say: Callable[[str], None] = print
) -> Table:
    """Run the demo and write everything into one folder.

    Args:
        output: a new or empty folder for ``scenes/``, the runs ``teacher/``, ``plain/`` and ``distilled/``, the
            distilled student as an ONNX file in ``exported/``, and the page ``report.html``.
        seed: of the scenes and of both students, below 1,000,000.
        train_teacher: train the teacher (several times as long as the rest) instead of using the package's.
        say: called with each line of progress.

    Returns:
        The table of the three runs and the exported file.

    Raises:
        UserError: the folder is not empty, or the seed is out of range.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder. Choose another one: --output FOLDER.")
    if not 0 <= seed < TEACHER_SEED:
        raise UserError(f"--seed: expected an integer from 0 to {TEACHER_SEED - 1}, got {seed}.")

    folders = train_all(output, seed, train_teacher, say)
    exported = export_student(folders[-1], output / "exported", say)
    say("6/6  Measuring the speed and writing the report")
    table = summarise([*folders, *exported])
    report_on(output / "report.html", table, title="The understudy demo", facts={"seed": seed})
    return table


def train_all(output: Path, seed: int, train_teacher: bool = False, say: Callable[[str], None] = print) -> list[Path]:
    """Draw the scenes, make the three runs and return their folders; arguments as in :func:`run_demo`."""
    teacher, plain, distilled = (output / name for name in ("teacher", "plain", "distilled"))
    say(f"1/6  Drawing {STUDENT_SCENES} scenes for training and {VALIDATION_SCENES} for validation")
    scenes = draw_scenes(output / "scenes", seed)
    if train_teacher:
        say(f"2/6  Training the teacher for {TEACHER_EPOCHS} epochs on {TEACHER_SCENES} scenes of its own")
        make_teacher(teacher, output / "teacher_scenes")
        _measure_teacher(teacher, scenes)
    else:
        say("2/6  Using the teacher that comes with understudy (--train-teacher trains a new one)")
        take_teacher(teacher, scenes)
    say(f"3/6  Training a plain student for {STUDENT_EPOCHS} epochs")
    train(load_config(TrainConfig, student_config(scenes, plain, seed)))
    say(f"4/6  Training the same student for {STUDENT_EPOCHS} epochs with the teacher (FRS)")
    taught = {"teacher": teacher, "methods": METHODS, "balance": "off", "teacher_cache": "off"}
    config = student_config(scenes, distilled, seed) | taught
    distill(load_config(DistillConfig, config))
    return [teacher, plain, distilled]


def export_student(run: Path, folder: Path, say: Callable[[str], None] = print) -> list[Path]:
    """Export a run to ONNX, and return the file; none if packages are missing or the export fails, which it says."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        say(f"5/6  No export to ONNX without {', '.join(missing)}. Install them: pip install 'understudy[onnx]'")
        return []
    say("5/6  Exporting the distilled student to ONNX")
    try:
        return [export(run, folder, ["onnx"], size=(SIZE, SIZE)) / "student.onnx"]
    except RunError as error:
        say(f"     {error}")
        return []


def draw_scenes(folder: Path, seed: int) -> Path:
    """Draw the scenes that the students are trained and evaluated on."""
    return make_scenes(folder, train=STUDENT_SCENES, val=VALIDATION_SCENES, size=SIZE, seed=seed)


def take_teacher(run: Path, scenes: Path) -> None:
    """Copy the run of the teacher that comes with the package, and evaluate it on some scenes."""
    with as_file(files("understudy") / "demo_teacher") as shipped:
        shutil.copytree(shipped, run)
    _measure_teacher(run, scenes)


def student_config(scenes: Path, run: Path, seed: int) -> dict[str, Any]:
    """Return the config that the plain and the distilled student share."""
    return {
        **RECIPE,
        "data": {**RECIPE["data"], "path": scenes},
        "detector": STUDENT,
        "schedule": {**RECIPE["schedule"], "epochs": STUDENT_EPOCHS},
        "seed": seed,
        "run": run,
    }


def make_teacher(run: Path, scenes: Path) -> Path:
    """Draw the teacher's own scenes and train the teacher on them; takes about 15 minutes on two cores."""
    make_scenes(scenes, train=TEACHER_SCENES, val=VALIDATION_SCENES, size=SIZE, seed=TEACHER_SEED)
    config = {
        **RECIPE,
        "data": {**RECIPE["data"], "path": scenes},
        "detector": TEACHER,
        "optimizer": {**RECIPE["optimizer"], "lr": 2e-3},
        "schedule": {**RECIPE["schedule"], "epochs": TEACHER_EPOCHS},
        "run": run,
    }
    return train(load_config(TrainConfig, config))


def _measure_teacher(run: Path, scenes: Path) -> None:
    """Evaluate the teacher on the students' validation scenes, on which it was not trained."""
    file = RunFolder(run).result
    measured = evaluate(run, scenes, split="val", device="cpu", batch_size=16)
    result = json.loads(file.read_text()) | measured.to_dict() | {"measured_on": [str(scenes.absolute()), "val"]}
    write_atomically(file, (json.dumps(result, indent=2) + "\n").encode())
