"""Several training runs of one experiment in one folder: finished ones are reused, interrupted ones continued."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from understudy.config import DistillConfig, TrainConfig, flat, load_config, open_keys
from understudy.errors import UserError
from understudy.reading import read_yaml
from understudy.text import shown
from understudy.training.assembly import resolve_config
from understudy.training.folder import RunFolder
from understudy.training.resuming import own_methods
from understudy.training.run import distill, resume, train

MAY_DIFFER = ("run", "data.workers", "accelerator", "strategy", "log_every")
"""Keys of which a finished run may have other values than those that are asked for now, beside keys left open now."""


def run_all(configs: Mapping[str, TrainConfig], say: Callable[[str], None]) -> list[Path]:
    """Train the runs that are missing, and return the folders of all.

    Args:
        configs: by name, each with its own folder.
        say: called with a line before each run.

    Raises:
        UserError: folders hold runs of another config (all are listed, before anything is trained), or a config has
            faults.
        RunError: a run failed.
        KeyboardInterrupt: the user stopped a run; the same command continues it.
    """
    faults = [fault for config in configs.values() for fault in _other_run(config)]
    if faults:
        faults.append("choose another folder (--output FOLDER), or delete these runs")
        raise UserError.listing("These run folders hold other runs than those that are asked for:", faults)
    for number, (name, config) in enumerate(configs.items(), start=1):
        say(f"{number}/{len(configs)}  {name}: {_finish(config)}")
    return [config.run for config in configs.values()]


def plain_config(config: DistillConfig, run: Path) -> TrainConfig:
    """Return the config of the same student without a teacher, hence without unlabelled images, in another folder."""
    values = config.model_dump()
    data = values["data"] | {"unlabelled": None, "unlabelled_batch": None}
    own = {key: values[key] for key in TrainConfig.model_fields}
    return load_config(TrainConfig, own | {"run": run, "data": data})


def refuse_keys(overrides: Sequence[str], keys: Mapping[str, str]) -> None:
    """Refuse overrides of keys that an experiment sets itself.

    Args:
        overrides: ``key=value`` arguments.
        keys: by key, what sets it.

    Raises:
        UserError: listing all of them.
    """
    faults = [f"{key}: is set by {keys[key]}" for each in overrides if (key := each.partition("=")[0]) in keys]
    if faults:
        raise UserError.listing("Keys that cannot be given here:", faults)


def _finish(config: TrainConfig) -> str:
    folder = RunFolder(config.run)
    if folder.result.exists():
        return f"finished before, {config.run}"
    if folder.config.exists():
        resume(config.run, own_methods(config))
    else:
        distill(config) if isinstance(config, DistillConfig) else train(config)
    return f"finished, {config.run}"


def _other_run(config: TrainConfig) -> list[str]:
    """Return the keys in which the run in a folder differs from a config; none if there is no run yet."""
    folder = RunFolder(config.run)
    if not folder.config.exists():
        return []
    wanted = flat(resolve_config(config).model_dump(mode="json"))
    found = flat(read_yaml(folder.config, "config file"))
    may_differ = {*MAY_DIFFER, *open_keys(config)}
    # The config of a run holds all options of its methods, of which a new config states some.
    return [
        f"{config.run}: {key} is {shown(found.get(key))}, not {shown(value)}"
        for key, value in wanted.items()
        if key not in may_differ and found.get(key) != value
    ]
