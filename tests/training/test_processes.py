"""Two processes give the losses and gradients of one process on the images of both.

Every family in both conventions, and every method that divides by something counted, on every family that it serves.
Both processes run all of them in one go, and one of the two is this one, since starting a process takes longer than
everything else. What is left out, and why, is in `docs/design.md` ("Statistics of a batch").
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import CLASSES, FAMILIES, tiny_detector
from torch import Tensor, distributed, multiprocessing

from understudy.detectors import Detector, build_detector
from understudy.functional import averaged_over_processes
from understudy.learner import Learner
from understudy.methods import METHODS, crosskd
from understudy.pairing import pair
from understudy.quantisation import Quantiser

PROCESSES = 2
PATIENCE = timedelta(minutes=10)
"""A process starts in seconds, but on a busy machine in minutes."""
OBJECTS = [  # of four images; the first two have more, and those of the last two are all on one level
    {"boxes": torch.tensor([[4.0, 4, 36, 40], [26, 12, 60, 44], [0, 0, 63, 63]]), "labels": torch.tensor([2, 0, 1])},
    {"boxes": torch.tensor([[10.0, 6, 48, 34], [30, 30, 44, 46]]), "labels": torch.tensor([1, 1])},
    {"boxes": torch.tensor([[6.0, 8, 40, 42]]), "labels": torch.tensor([0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]
COUNTING: dict[str, tuple[str, dict[str, Any]]] = {  # by name of the case: method and options
    "frs": ("frs", {"normaliser": "batch"}),
    "frs by truth": ("frs", {"region": "tp_tn"}),
    "frs of a pyramid": ("frs", {"normaliser": "pyramid", "standardise": "channel", "boxes": "decoded"}),
    "frs of classes": ("frs", {"normaliser": "pyramid", "class_balance": True}),
    "pfi": ("pfi", {"standardise": "level"}),
    "gid": ("gid", {}),
    "fine_grained": ("fine_grained", {}),
    "defeat": ("defeat", {}),
    "soft_labels": ("soft_labels", {}),
    "second_stage": ("second_stage", {}),
    "ld": ("ld", {}),
    "ld by positives": ("ld", {"normaliser": "positives"}),
    "crosskd": ("crosskd", {}),
    "bckd": ("bckd", {}),
    "score_l2": ("score_l2", {}),
    "rank_mimicking": ("rank_mimicking", {}),
    "fgd": ("fgd", {}),
    "dist2": ("dist2", {"strategies": ("N2N",), "align": False, "supervision": "both"}),
}
LOCAL = {"gid_relation"}  # it compares the boxes of one process with each other
STYLES = ("torchvision", "mmdet")


def detector(family: str, conventions: str, seed: int) -> Detector:
    """A tiny detector in `eval()`, so that its batch normalisation has no statistics of a process."""
    if conventions == "torchvision":
        made = tiny_detector(family, 16, seed)
    else:
        settings = {"fc_channels": 16} if family == "faster_rcnn" else {}
        options = {"conventions": conventions, "settings": settings, "neck_channels": 16, "width_mult": 1 / 8}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = build_detector(f"{family}_resnet18", CLASSES, **options)
            for weight in made.network.parameters():
                if weight.dim() == 4:
                    torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    if made.spec.two_stage:  # draw everything: a sample is another one in another process
        for stage in (made.network.rpn, made.network.roi_heads):
            for name in ("batch_size_per_image", "count"):
                if hasattr(stage.fg_bg_sampler, name):
                    setattr(stage.fg_bg_sampler, name, 100_000)
            stage.fg_bg_sampler.positive_fraction = 0.5
    return made.eval()


def cases() -> Iterator[tuple[str, Learner, Detector | None]]:
    """Every family without a method, then every counting method on the families that it serves."""
    for family in FAMILIES:
        for conventions in STYLES:
            made = detector(family, conventions, 1)
            yield f"{family} {conventions}", Learner(made).eval(), None
            if not made.spec.objectness:
                yield f"{family} {conventions}, balanced classes", Learner(made, class_balance=True).eval(), None
    for family in FAMILIES:
        student, teacher = detector(family, "torchvision", 1), detector(family, "torchvision", 2)
        student.loss = lambda *_: {}
        teacher.requires_grad_(False)
        common = pair(student.spec, teacher.spec)
        for name, (method, options) in COUNTING.items():
            obstacles = METHODS[method].obstacles(common.student, common.teacher)
            terms = tuple(term for term in METHODS[method].all_terms() if term not in obstacles)
            terms = tuple(term for term in terms if f"{method}_{term}" not in LOCAL)
            if not terms:
                continue
            torch.manual_seed(0)
            built = METHODS[method](common.student, common.teacher, terms=terms, **options).eval()
            yield f"{name} {family}", Learner(student, [built], common).eval(), teacher


def losses_of(images: slice) -> dict[str, Tensor]:
    """The losses of every case on some images, and the sizes of their gradients by parameter."""
    torch.manual_seed(3)
    pixels, targets = torch.rand(4, 3, 64, 64)[images], OBJECTS[images]
    found = {}
    for name, learner, teacher in cases():
        outputs = None
        if teacher is not None:
            with torch.no_grad():
                outputs = teacher(pixels)
        losses = learner(pixels, targets, outputs, teacher=teacher)
        found |= {f"{name}: {term}": loss.detach() for term, loss in losses.items()}
        parameters = [weight for weight in learner.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True)
        found[f"{name}: gradient"] = torch.cat([each.flatten() for each in gradients if each is not None])
    found["ranges of a quantised student"] = ranges_of(pixels)
    return found


def ranges_of(pixels: Tensor) -> Tensor:
    """The ranges of the layers' inputs that a student is quantised with, after a step on some images."""
    student = detector("retinanet", "torchvision", 1)
    quantiser = Quantiser(student, start=1)
    for layer in quantiser.layers.values():
        layer.train()  # it observes in training alone; batch normalisation stays as it is
    student(pixels)
    quantiser.step()
    return torch.tensor([*quantiser.ranges.values()])


@contextmanager
def unaligned() -> Iterator[None]:
    """Without the batch statistics of CrossKD, which are those of a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crosskd, "align_scale", lambda student, teacher: student)
        yield


def one_process(rank: int, folder: Path) -> dict[str, Tensor]:
    """The losses of this process' half of the images, averaged over the processes."""
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), PROCESSES)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES, timeout=PATIENCE)
    try:
        with unaligned():
            found = losses_of(slice(2 * rank, 2 * rank + 2))
        counts = torch.tensor([[3, 0], [4, 0]])[rank]
        found["count"] = averaged_over_processes(counts, least=1).float()
        for value in found.values():
            distributed.all_reduce(value)
            value /= PROCESSES
    finally:
        distributed.destroy_process_group()
    return found


def other_process(index: int, folder: Path) -> None:
    one_process(index + 1, folder)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    with unaligned():
        expected = losses_of(slice(0, 4))
    others = multiprocessing.spawn(other_process, (tmp_path,), nprocs=PROCESSES - 1, join=False)
    found = one_process(0, tmp_path)
    while not others.join():
        pass
    assert found.pop("count").tolist() == [3.5, 0.5]  # at least one of all processes together
    assert found.keys() == expected.keys()
    assert {name.split(":")[0].split(" ")[0] for name in found} >= {
        *FAMILIES,
        *(method for method, _ in COUNTING.values()),
    }
    wrong = {}
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max()
        if not error < 1e-3:  # a divisor of one process differs by much more
            wrong[name] = float(error)
    assert wrong == {}


def test_a_single_process_keeps_its_count():
    count = torch.tensor([3, 0])
    assert averaged_over_processes(count).tolist() == [3, 1]
    assert averaged_over_processes(torch.tensor(1e-9), least=1e-6) == pytest.approx(1e-6)
