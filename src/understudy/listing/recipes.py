"""The output of ``understudy recipes``: every recipe with its published AP, or one in full."""

from collections.abc import Iterator

from understudy.config import DistillConfig, TrainConfig, dump_config, load_config
from understudy.recipes import Recipe, Teacher, papers, read_recipe, recipe_names, step_seconds, teachers
from understudy.text import shell_lines, terminal_width, wrapped

ADVICE = (
    "AP in percent as printed (-: not printed, or not available to us), and ours where measured. `understudy recipes "
    "NAME` explains a recipe: settings, sources and their contradictions, teacher, commands. `understudy recipes "
    "check` builds the detectors and methods of all."
)

TIMED_IMAGES, TIMED_SIDE = 16, 800
"""Images of a measured step, and their shorter side in pixels."""


def overview() -> str:
    """Return one line for each recipe, by paper and table, and advice."""
    recipes = [read_recipe(name) for name in recipe_names()]
    column = max(map(len, recipe_names())) + 2
    lines = []
    for key, paper in papers().items():
        rows = [recipe for recipe in recipes if recipe.paper == key]
        lines += [wrapped(paper.title), ""]
        for table in dict.fromkeys(recipe.table for recipe in sorted(rows, key=_order)):
            lines.append(f"  {table:{column}}{'plain':>8}{'teacher':>9}{'distilled':>11}{'ours':>7}")
            lines += [_line(recipe, column) for recipe in rows if recipe.table == table] + [""]
    return "\n".join([*lines, wrapped(ADVICE)])


def explain(name: str) -> str:
    """Return everything about one recipe: AP, teacher, commands, needs, sources, contradictions and the whole config.

    Raises:
        UserError: there is no such recipe.
    """
    recipe = read_recipe(name)
    blocks = [
        wrapped(recipe.title),
        "\n".join(_facts(recipe)),
        "\n".join(["Commands:", *_commands(recipe)]),
        _listed("Sources", recipe.sources),
        _listed("Contradictions and gaps of the sources", recipe.inconsistencies),
        _listed("Inconsistencies of the paper that concern no single recipe", papers()[recipe.paper].inconsistencies),
        _listed("Not as in the sources", recipe.deviations),
        f"Config (data, teacher and run are yours):\n\n{config_text(recipe)}",
    ]
    return "\n\n".join(block for block in blocks if block)


def config_text(recipe: Recipe) -> str:
    """Return the whole config that a recipe makes, as YAML; the values of required keys are placeholders."""
    values = {"recipe": recipe.name, "data": "DATA", "run": f"runs/{recipe.name}"}
    if not recipe.methods:
        return dump_config(load_config(TrainConfig, values))
    return dump_config(load_config(DistillConfig, values | {"teacher": _teacher_path(recipe)}))


def train_command(recipe: Recipe) -> str:
    """Return the command that trains a recipe's student without a teacher."""
    return f"understudy train --recipe {recipe.name} data=DATA run=runs/plain"


def distill_command(recipe: Recipe) -> str:
    """Return the command that runs a recipe."""
    return f"understudy distill --recipe {recipe.name} data=DATA teacher={_teacher_path(recipe)} run=runs/{recipe.name}"


def teacher_command(key: str, teacher: Teacher) -> str:
    """Return the command that makes a teacher's checkpoint: an import, or a training run."""
    if teacher.url is None:
        return teacher.training or ""
    style = f" --style {teacher.style}" if teacher.style else ""
    return f"understudy import {teacher.url.rpartition('/')[2]}{style} -o {key}.ckpt"


def number(value: float | None) -> str:
    """Write an AP in percent; a dash for None."""
    return "-" if value is None else f"{value:.1f}"


def _teacher_path(recipe: Recipe) -> str:
    """Return where the teacher is after its command: an imported checkpoint, or a run folder."""
    key = str(recipe.teacher)
    return f"{key}.ckpt" if teachers()[key].url else f"runs/{key}"


def _order(recipe: Recipe) -> tuple[bool, str]:
    return not recipe.table.startswith(("Table", "COCO")), recipe.table


def _line(recipe: Recipe, column: int) -> str:
    printed, ours = recipe.published, recipe.measured.ap if recipe.measured else None
    numbers = f"{number(printed.plain):>8}{number(printed.teacher):>9}{number(printed.distilled):>11}{number(ours):>7}"
    return f"  {recipe.name:{column}}{numbers}"


def _facts(recipe: Recipe) -> Iterator[str]:
    printed = recipe.published
    yield _fact("Paper", f"{papers()[recipe.paper].title}; {recipe.table}")
    aps = f"plain {number(printed.plain)}, teacher {number(printed.teacher)}, distilled {number(printed.distilled)}"
    yield _fact("Published", f"{aps} ({printed.data})")
    yield _fact("Ours", f"{recipe.measured.ap:.1f} ({recipe.measured.where})" if recipe.measured else "not measured")
    if recipe.teacher:
        teacher = teachers()[recipe.teacher]
        ap = f", AP {teacher.ap:.1f} in mmdet's zoo" if teacher.ap else ""
        yield _fact("Teacher", f"{teacher.title}{ap}; {'download' if teacher.url else 'to be trained, see below'}")
        yield from [f"{'':11}{teacher.url}"] if teacher.url else []  # in one line, to be copied
    yield _fact("Data", recipe.layout)
    for url in recipe.needs:
        yield f"{_fact('Weights', 'of the backbone; download into the current folder')}\n{'':11}{url}"
    yield _fact("Hardware", f"{recipe.hardware}; {recipe.images} images, {recipe.steps} steps")
    yield _fact("Expected", _expected_time(recipe))


def _expected_time(recipe: Recipe) -> str:
    """Return the time of the whole run on each device, or that it was not measured."""
    measured, side = step_seconds().get(recipe.timed_pair), max(recipe.config["data"]["shorter_side"])
    if measured is None:
        return f"not measured (no step of {recipe.timed_pair} was timed)"
    if side != TIMED_SIDE:
        return f"not measured (steps were timed at a shorter side of {TIMED_SIDE} pixels, not {side})"
    methods = recipe.timed_methods if recipe.timed_methods in measured else next(iter(measured))
    parts = recipe.steps * recipe.config["batch_size"] / TIMED_IMAGES
    times = "; ".join(
        f"{parts * seconds / 3600:.1f} hours on {device} ({seconds:.3f} s for {TIMED_IMAGES} images)"
        for device, seconds in measured[methods].items()
    )
    other = teachers()[recipe.teacher].timed_as if recipe.teacher else None
    return f"{times}; measured with {methods}{f' from {other}' if other else ''}, without loading images"


def _commands(recipe: Recipe) -> Iterator[str]:
    width = terminal_width()
    if recipe.teacher:
        yield shell_lines(teacher_command(recipe.teacher, teachers()[recipe.teacher]), width)
        yield shell_lines(distill_command(recipe), width)
    yield shell_lines(train_command(recipe), width)


def _fact(title: str, text: str) -> str:
    return wrapped(text, f"{title + ':':11}", hanging=11)


def _listed(title: str, items: list[str]) -> str:
    return "\n".join([f"{title}:", *(wrapped(item, "  - ", hanging=4) for item in items)]) if items else ""
