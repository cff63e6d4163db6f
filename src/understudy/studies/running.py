"""Run a study: train what is missing, go on with what was interrupted, and summarise."""

import itertools
import json
import math
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from understudy.compare.runs import Run, read_runs, read_teacher
from understudy.config import DistillConfig, TrainConfig, open_keys, with_values
from understudy.errors import RunError, Stopped, UserError
from understudy.evaluation import Evaluation
from understudy.files import write_atomically
from understudy.studies.choices import chosen_for, deciding_row, shared_with
from understudy.studies.folder import StudyFolder
from understudy.studies.jobs import in_processes
from understudy.studies.page import write_page
from understudy.studies.plan import Plan
from understudy.studies.results import StudyResult, Trained, matches_of
from understudy.studies.rows import LONGER, StudyRow
from understudy.studies.summary import summarise
from understudy.studies.tables import rows_as_csv, runs_as_csv
from understudy.studies.tasks import Task, one_by_one, outcomes
from understudy.studies.timing import StepCost, step_costs
from understudy.training import console
from understudy.training.assembly import AssembledRun, resolve_config
from understudy.training.environment import version_of
from understudy.training.folder import RunFolder, lock
from understudy.training.run import completed, using_threads
from understudy.training.teacher_cache import TeacherCache, share_of_passes
from understudy.training.together import can_share
from understudy.training.trainer import make_trainer

LONGER_ROW = StudyRow(LONGER, "none", (), ())


def run_study(
    path: Path,
    plan: Plan | None = None,
    *,
    together: bool = False,
    jobs: int = 1,
    retry: bool = False,
    accept_changes: bool = False,
    trusted: Sequence[str] = (),
) -> StudyResult:
    """Train every run of a study that is not finished, and summarise all of them.

    Args:
        path: a new folder, or one of a study, which goes on.
        plan: of a new study, or with further rows and seeds; None: go on.
        together: whether the runs of a seed are trained side by side; the numbers are the same.
        jobs: number of processes that train at once, each a run, or a group of runs side by side.
        retry: whether runs that failed are tried again.
        accept_changes: whether to go on with other training images, another teacher or another version than at the
            start. Other validation images are never accepted, since AP on them cannot be compared.
        trusted: the user's own methods that may be imported.

    Raises:
        UserError: the folder holds another study or is in use, or a row cannot be trained; nothing was trained.
        RunError: the disk is full.
        Stopped: a signal stopped the study, and the run was saved. The message names the command that goes on.
    """
    folder = StudyFolder(path)
    plan = _agreed(folder, plan, trusted)
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder of the study, {path}, cannot be created: {error.strerror or error}.") from error
    with lock(
        path, f"{path} is in use: another study is running in it. Wait until it has ended, or choose a new folder."
    ):
        study = Study(folder, plan)
        try:
            study.prepare(accept_changes)
        except BaseException:
            if not existed:
                folder.remove_if_unused()
            raise
        if retry:
            folder.forget_failures()
        study.train(together, jobs, accept_changes)
        return study.summarise()


def _agreed(folder: StudyFolder, plan: Plan | None, trusted: Sequence[str]) -> Plan:
    """Return the plan of the folder, with the rows and seeds that the user adds."""
    if not folder.plan.exists():
        folder.check_new()
        if plan is None:
            raise UserError(
                f"{folder.path} holds no study (there is no study.yaml). To begin one: understudy study {folder.path} "
                "data=DATA detector=STUDENT teacher=TEACHER --row METHOD"
            )
        return plan
    agreed = Plan.load(folder.plan)
    if plan is not None:
        if found := agreed.differences(plan):
            found.append("to go on with it as it is, give its folder alone; for another study, choose a new folder")
            raise UserError.listing(f"{folder.path} holds a study with other settings:", found)
        agreed = agreed.with_more(plan.rows, plan.seeds).with_free_keys_of(plan)
    if unknown := sorted(set(agreed.own_methods) - set(trusted)):
        options = shlex.join(part for name in unknown for part in ("--trust", name))
        raise UserError(
            f"Rows of {folder.plan} import methods from modules, and so run their code: {', '.join(unknown)}. If you "
            f"trust them, add: {options}"
        )
    return agreed


class Study:
    """A study in its locked folder.

    Args:
        folder: of the study.
        plan: of the study.
    """

    def __init__(self, folder: StudyFolder, plan: Plan):
        self.folder, self.plan, self.facts = folder, plan, folder.read_facts()

    def prepare(self, accept_changes: bool) -> None:
        """Check that every row can be trained, and measure what a step of it costs; write plan and facts.

        Raises:
            UserError: a row cannot be trained, or data, teachers or version have changed; all of it is listed.
        """
        runs = dict(self._assembled())
        found = self._fingerprints(runs)
        self._check_unchanged(found, accept_changes)
        self.facts["made_with"] = found
        if missing := runs.keys() - self.facts.get("costs", {}).keys():
            begins, measured = "costs" not in self.facts, self._measured(runs)
            self._note_costs(runs, measured, missing)
            if begins and self.plan.minutes is not None:
                self._choose_by_time(runs, measured)
        if self.plan.longer and "longer" not in self.facts:
            self.facts["longer"] = self._longer()
        self.folder.write_plan(self.plan)
        self.folder.write_facts(self.facts)

    def _fingerprints(self, runs: Mapping[str, AssembledRun]) -> dict[str, str]:
        """Return the version, and fingerprints of data and teachers; a row with other data has its own."""
        found = {"understudy": version_of("understudy") or "unknown"}
        for name, run in runs.items():
            config = run.engine.config
            teacher = f"the teacher {config.teacher.name}" if isinstance(config, DistillConfig) else ""
            for what, value in run.facts["fingerprints"].items():
                what = what.replace("the teacher", teacher)
                if found.setdefault(what, value) != value:
                    found[f"{what}, row {quoted(name)}"] = value
        return found

    def _measured(self, runs: Mapping[str, AssembledRun]) -> dict[str, StepCost]:
        console.say(f"measuring a step of {len(runs)} rows, in turns")
        with using_threads(self.plan.config["threads"]):
            return step_costs(runs)

    def _note_costs(
        self, runs: Mapping[str, AssembledRun], measured: Mapping[str, StepCost], names: Collection[str]
    ) -> None:
        """Keep the mean cost of a step over the run of each of these rows."""
        rows = {name: (row, teacher) for name, row, teacher in self._rows()}
        costs, plain = self.facts.setdefault("costs", {}), next(iter(measured.values())).seconds
        for name in (name for name in runs if name in names):
            cost, engine, cached = measured[name], runs[name].engine, _keeps(runs[name])
            costs[name] = {"seconds": cost.seconds, "memory": cost.memory, "steps": len(runs[name].loader)}
            for _ in range(2 if cached else 0):  # the epochs of a budget in time follow from the seconds of a step
                config, device = self._with_budget(name, *rows[name]), runs[name].trainer.strategy.root_device
                share = share_of_passes(config, engine.data, engine.unlabelled, device)
                costs[name]["seconds"] = cost.seconds + share * (cost.computed - cost.seconds)
            costs[name] |= {"cached": cached, "ratio": costs[name]["seconds"] / plain}

    def _choose_by_time(self, runs: Mapping[str, AssembledRun], measured: Mapping[str, StepCost]) -> None:
        """Choose again what follows from the epochs, now that a budget in time gives them."""
        last, *_ = deciding_row(list(self._rows()))
        self.facts["costs"][last]["seconds"] = measured[last].seconds  # not yet those of too many variants
        for _ in range(3):  # the choice changes the time of a step, and so the epochs
            if not self._choose(self._epochs(last)):
                break
            again = dict(self._assembled())
            if any(_keeps(again[name]) != _keeps(run) for name, run in runs.items()):
                measured = self._measured(again)
            self._note_costs(again, measured, again.keys())
            runs = again

    def _longer(self) -> float:
        """Return how many times as long as the plain student's run the slowest distilled one takes."""
        times = []
        for name, row, teacher in self._rows():
            cost, epochs = self.facts["costs"][name], self._with_budget(name, row, teacher).schedule.epochs
            times.append((bool(row.methods), cost["seconds"] * cost["steps"] * epochs))
        return max([time / times[0][1] for distilled, time in times if distilled], default=1.0)

    def _with_budget(self, name: str, row: StudyRow, teacher: Path) -> TrainConfig:
        return self._config_of(row, self.plan.seeds[0], teacher, self.folder.path / "runs", self._epochs(name))

    def _assembled(self) -> Iterator[tuple[str, AssembledRun]]:
        """Assemble a run of each row, without its folder, to find all faults; they share the first one's teacher."""
        faults: list[tuple[str, str]] = []
        teachers: dict[Path, Any] = {}
        place = RunFolder(self.folder.path / "runs" / "timing")
        self._choose()
        for name, row, teacher in self._rows():
            config = with_values(self._config_of(row, self.plan.seeds[0], teacher, place.path), {"data.workers": 0})
            try:
                config = resolve_config(config)
                run = completed(config, place, make_trainer(config, place.path), measure=False)
            except UserError as error:
                lines = str(error).splitlines()
                faults += [(name, line.removeprefix("  - ")) for line in (lines[1:] or lines)]
                continue
            if run.engine.teacher_pass:
                shared = teachers.setdefault(teacher, run.engine.teacher)
                run.engine.__dict__["teacher"] = run.engine.teacher_pass.teacher = shared
            yield name, run
        if faults:
            rows = {fault: [name for name, other in faults if other == fault] for _, fault in faults}
            every = len(list(self._rows()))
            raise UserError.listing(
                "These rows cannot be trained:",
                [
                    fault if len(names) == every else f"row {', '.join(map(quoted, names))}: {fault}"
                    for fault, names in rows.items()
                ],
            )

    def _choose(self, epochs: int | None = None) -> bool:
        """Choose what the plan leaves open and all runs share, and keep it in the facts.

        Args:
            epochs: of a budget in time; None: those of the plan.

        Returns:
            Whether other values were chosen than before.
        """
        before = self.facts.get("chosen")
        if epochs:
            self.facts.pop("chosen", None)
        _, row, teacher = deciding_row(list(self._rows()))
        config = self._config_of(row, self.plan.seeds[0], teacher, self.folder.path / "runs")
        found = chosen_for(config, self.plan.steps, epochs, before)
        if (chosen := before if found is None else found) is not None:
            self.facts["chosen"] = chosen
        return bool(epochs) and before is not None and self.facts.get("chosen") != before

    def _config_of(self, row: StudyRow, seed: int, teacher: Path, run: Path, epochs: int | None = None) -> TrainConfig:
        """Return the config of a run with what was chosen for all runs."""
        config = self.plan.config_of(row, seed, teacher, run, epochs)
        chosen = shared_with(row, self.facts.get("chosen", {}), len(self.plan.teachers))
        return with_values(config, {key: chosen[key] for key in open_keys(config) if key in chosen})

    def _rows(self) -> Iterator[tuple[str, StudyRow, Path]]:
        """Yield the rows of the results, apart from the one that is added, with their teachers."""
        for row in self.plan.rows:
            teachers = self.plan.teachers if row.methods else self.plan.teachers[:1]
            for teacher in teachers:
                name = f"{row.name} ({teacher.name})" if len(teachers) > 1 else row.name
                yield name, row, teacher

    def _check_unchanged(self, found: Mapping[str, str], accept_changes: bool) -> None:
        before = self.facts.get("made_with", {})
        changed = [
            f"{what}: {before[what]} before, {now} now" if what == "understudy" else what
            for what, now in found.items()
            if before.get(what, now) != now
        ]
        validation = any("data.val" in what for what in changed)
        if changed and (validation or not accept_changes):
            mix = "" if validation else ", or mix old and new results on purpose: --accept-changes"
            changed.append(f"choose a new folder{mix}")
            raise UserError.listing(f"{self.folder.path} cannot go on, these have changed since it began:", changed)
        if changed:
            self.facts["accepted"] = [*self.facts.get("accepted", []), *changed]
            self.facts.pop("teachers", None)  # their evaluations
        for each in changed:
            console.say(f"Changed since the study began, and accepted: {each}")

    def tasks(self) -> list[Task]:
        """Return all runs of the study, seed by seed."""
        rows = list(self._rows())
        if self.plan.longer:
            rows.insert(1, (LONGER, LONGER_ROW, rows[0][2]))
        found: list[Task] = []
        for seed, (name, row, teacher) in itertools.product(self.plan.seeds, rows):
            slug = f"{row.slug}-{teacher.name}" if len(self.plan.teachers) > 1 and row.methods else row.slug
            run = self.folder.run(f"{slug}-seed{seed}")
            config = self._config_of(row, seed, teacher, run.path, self._epochs(name))
            if name == LONGER and config.schedule.epochs == found[-1].config.schedule.epochs:
                continue  # it would be the plain student once more
            found.append(Task(run.path.name, name, seed, config, run))
        return found

    def _epochs(self, row: str) -> int | None:
        """Return the epochs of a row by the budget; None: as its config says."""
        plain = next(iter(self.facts["costs"]))
        cost = self.facts["costs"][plain if row == LONGER else row]
        if self.plan.minutes is not None:
            return max(1, int(60 * self.plan.minutes / (cost["seconds"] * cost["steps"])))
        if self.plan.steps is not None:
            count = max(1, round(self.plan.steps / cost["steps"]))
        elif row == LONGER:
            count = self.plan.config["schedule"]["epochs"] or self.facts["chosen"]["schedule.epochs"]
        else:
            return None
        return round(count * self.facts["longer"]) if row == LONGER else count

    def train(self, together: bool, jobs: int, accept_changes: bool = False) -> None:
        """Train the runs that are neither finished nor failed.

        Raises:
            RunError: the disk is full.
            Stopped: a signal stopped the study.
        """
        tasks = self.tasks()
        groups: list[list[Task]] = []
        for seed in self.plan.seeds:
            of_seed = [task for task in tasks if task.seed == seed]
            left = [task for task in of_seed if not task.folder.result.exists() and not self.folder.failure(task.name)]
            groups += self._groups(left) if together else [[task] for task in left]
        left = sum(map(len, groups))
        if left:
            console.say(f"{len(tasks) - left} of {len(tasks)} runs are ready, {left} are to be trained")
        stop = None
        try:
            run = partial(outcomes, accept_changes=accept_changes)
            each = in_processes(groups, run, jobs) if jobs > 1 and len(groups) > 1 else one_by_one(groups, run)
            for group, found in each:
                for task, outcome in zip(group, found, strict=True):
                    if outcome.stopped:
                        stop = outcome.stopped
                    elif outcome.fatal:
                        raise RunError(outcome.failure)
                    elif outcome.failure:
                        console.say(f"{task.name} has failed: {outcome.failure}")
                        self.folder.note_failure(task.name, outcome.failure)
                if not stop:
                    left -= len(group)
                    console.say(f"{len(tasks) - left} of {len(tasks)} runs are ready")
        except Stopped as stopped:
            stop = stopped.exit_code - 128
        if stop:
            raise Stopped(f"Stopped and saved. To go on: understudy study {self.folder.path}", stop)

    def _groups(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """Put tasks together that can share batches and teacher; those that cannot use the cache keep to themselves."""
        groups: list[list[Task]] = []
        for task in tasks:
            fitting = (group for group in groups if all(self._fit(task, other) for other in group))
            group = next(fitting, None)
            if group is None:
                groups.append([task])
            else:
                group.append(task)
        return groups

    def _fit(self, task: Task, other: Task) -> bool:
        plain = not all(isinstance(each.config, DistillConfig) for each in (task, other))
        cached = [self.facts["costs"][each.row]["cached"] for each in (task, other) if each.row != LONGER]
        return can_share(task.config, other.config) and (plain or len(set(cached)) == 1)

    def summarise(self) -> StudyResult:
        """Evaluate what is finished, and write the results."""
        trained = []
        for task in self.tasks():
            if task.folder.result.exists():
                matches = self.folder.read_matches(task.name)
                if matches is None:
                    console.say(f"matching the detections of {task.name}")
                    matches = matches_of(task.config, task.folder.path)
                    self.folder.write_matches(task.name, matches)
                trained.append(Trained(task.row, task.seed, task.config, task.folder, matches))
            else:
                reason = self.folder.failure(task.name) or "not finished"
                trained.append(Trained(task.row, task.seed, task.config, task.folder, None, reason))
        teachers = self._teachers(trained)
        numbers = {path: _defined(run.evaluation.coco) for path, run in teachers.items()}
        result = summarise(self.plan, self.facts, trained, numbers)
        for file, text in (
            (self.folder.results, json.dumps(result.to_dict(), indent=2) + "\n"),
            (self.folder.table, rows_as_csv(result)),
            (self.folder.runs_table, runs_as_csv(result)),
        ):
            write_atomically(file, text.encode())
        console.say("writing the page")
        write_page(self.folder, result, teachers)
        return result

    def _teachers(self, trained: Sequence[Trained]) -> dict[str, Run]:
        """Return the run of each teacher of a finished student, evaluated on the validation split, by its path."""
        known = self.facts.setdefault("teachers", {})
        found: dict[str, Run] = {}
        for each in trained:
            if each.matches and isinstance(each.config, DistillConfig) and str(each.config.teacher) not in found:
                path = str(each.config.teacher)
                before = Evaluation.from_dict(known[path]) if "coco" in known.get(path, {}) else None
                found[path] = read_teacher(read_runs([each.folder.path])[0], known=before)
                known[path] = found[path].evaluation.to_dict()
        self.folder.write_facts(self.facts)
        return found


def _keeps(run: AssembledRun) -> bool:
    """Return whether a run keeps its teacher's outputs."""
    return isinstance(run.engine.teacher_pass, TeacherCache)


def _defined(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def quoted(name: str) -> str:
    """Return a name in quotation marks."""
    return f'"{name}"'
