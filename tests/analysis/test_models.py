"""The detectors and images of an analysis, and the walk over them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from understudy.analysis.models import inside, named, open_images, open_models, sample, targets_of, walk
from understudy.checkpoints import read_checkpoint, write_checkpoint
from understudy.cli import main
from understudy.data import open_data
from understudy.errors import UserError


@pytest.fixture
def imported(trained, tmp_path):
    """A checkpoint as an import writes it: without a run, and without a data set."""
    content = read_checkpoint(trained / "best.ckpt")
    data = content["understudy"]["config"]["data"]
    kept = {"path": None, "val": "val", "shorter_side": data["shorter_side"], "longer_side": data["longer_side"]}
    content["understudy"]["config"] = {"data": kept}
    write_checkpoint(tmp_path / "imported.ckpt", content)
    return tmp_path / "imported.ckpt"


def test_models_are_named_after_their_folders_and_files(trained, imported):
    assert [model.name for model in open_models([trained, imported])] == ["trained", "imported"]
    twins = open_models([trained / "best.ckpt", trained / "last.ckpt"])
    assert [model.name for model in twins] == [str(trained / "best.ckpt"), str(trained / "last.ckpt")]


def test_all_checkpoints_that_cannot_be_analysed_are_named(trained, tmp_path):
    with pytest.raises(UserError, match=r"(?s)cannot be analysed.*absent.*is given twice"):
        open_models([trained, tmp_path / "absent", trained / "best.ckpt"])
    with pytest.raises(UserError, match="absent does not exist"):
        open_models([tmp_path / "absent"])


def test_the_data_set_is_that_of_the_first_model_that_has_one(trained, imported, scenes):
    models = open_models([imported, trained])
    opened = open_images(models, None, None)
    assert (opened.source, opened.split, len(opened)) == (scenes / "instances_val.json", "val", 4)
    assert open_images(models, scenes, "train").split == "train"
    with pytest.raises(UserError, match=r"No data set to evaluate on.*Give one as DATA"):
        open_images(models[:1], None, None)
    models[1].checkpoint.config["data"]["path"] = Path("moved")
    with pytest.raises(
        UserError, match=r"No data set at moved, where the config in .*best.ckpt has it. Give its place"
    ):
        open_images(models[1:], None, None)
    with pytest.raises(UserError, match=r"Give its place as --data DATA\.$"):
        open_images(models[1:], None, None, argument="--data DATA")


def test_images_are_evenly_spread_or_chosen_by_name(scenes):
    data = open_data(scenes, "train")
    names = [record.path.name for record in data.records]
    assert [record.path.name for record in sample(data, 3).records] == [names[0], names[2], names[5]]
    assert sample(data, None) is sample(data, 99) is data
    chosen = named(data, [names[3], data.records[1].path.stem, str(data.records[0].image_id)])
    assert [record.path.name for record in chosen.records] == [names[3], names[1], names[0]]
    with pytest.raises(
        UserError, match=f"(?s)nothing: no such image.*{names[2][:-1]}: no such image; did you mean {names[2]}"
    ):
        named(data, ["nothing", names[2][:-1]])
    twice = replace(data, records=[*data.records, data.records[0]])
    with pytest.raises(UserError, match="2 images have this name"):
        named(twice, [names[0]])


class Count:
    """An analysis that notes which models it got for which images, and at which size."""

    def __init__(self):
        self.got = []

    def add(self, batch, outputs):
        self.got += [
            (image, size, tuple(outputs)) for image, size in zip(batch.image_ids, batch.image_sizes, strict=True)
        ]


def test_one_walk_serves_all_models_and_analyses(trained, distilled):
    models = open_models([trained, distilled])
    data = open_images(models, None, None)
    first, second = Count(), Count()
    assert walk(models, data, [first, second], device="cpu", batch_size=3) == 4
    assert first.got == second.got
    assert [image for image, _, _ in first.got] == [record.image_id for record in data.records]
    assert {names for _, _, names in first.got} == {("trained", "distilled")}


def test_each_size_has_a_pass_unless_one_model_decides(trained, distilled):
    models = open_models([trained, distilled])
    models[1].checkpoint.config["data"]["shorter_side"] = [32]
    data = open_images(models, None, None, images=1)
    own, alike = Count(), Count()
    walk(models, data, [own], device="cpu")
    assert [(size, names) for _, size, names in own.got] == [((64, 64), ("trained",)), ((32, 32), ("distilled",))]
    assert walk(models, data, [alike], like=models[1], device="cpu", seconds=0) == 1
    assert [(size, names) for _, size, names in alike.got] == [((32, 32), ("trained", "distilled"))]


def test_a_walk_ends_when_its_time_is_over(trained):
    models = open_models([trained])
    assert walk(models, open_images(models, None, None), [Count()], device="cpu", seconds=0) == 1


def test_targets_have_the_labels_of_the_model(batch):
    targets, left_out = targets_of(batch, labels=(-1, 0, 1))  # the model lacks the first class
    assert [target["labels"].tolist() for target in targets] == [[1], [0]]
    assert [boxes.tolist() for boxes in left_out] == [[[4, 4, 40, 50]], []]


def test_cells_that_begin_in_the_padding_are_outside(model, batch, records):
    teacher = model("teacher")
    masks = inside(records(teacher)["teacher"], teacher.detector.spec.strides, batch.image_sizes)
    for mask, stride in zip(masks, teacher.detector.spec.strides, strict=True):
        for image, (height, width) in enumerate(batch.image_sizes):
            assert int(mask[image].sum()) == -(-height // stride) * -(-width // stride)
            assert torch.equal(mask[image], mask[image].sort(1, descending=True).values)


@pytest.mark.parametrize(
    ("command", "argument"),
    [("evaluate", "DATA"), ("analyse richness", "DATA"), ("benchmark", "--data DATA")]
    + [(f"analyse {name}", "--data DATA") for name in ("errors", "ranks", "imitation", "proposals")],
)
def test_each_command_names_the_argument_for_data_that_were_moved(command, argument, trained, tmp_path, capsys):
    content = read_checkpoint(trained / "best.ckpt")
    content["understudy"]["config"]["data"]["path"] = str(tmp_path / "gone")
    of_pairs = command.endswith(("ranks", "imitation", "proposals"))
    files = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"][: 2 if of_pairs else 1]
    for file in files:
        write_checkpoint(file, content)
    with pytest.raises(SystemExit):
        main([*command.split(), *map(str, files)])
    assert capsys.readouterr().err.endswith(f".ckpt has it. Give its place as {argument}.\n")
