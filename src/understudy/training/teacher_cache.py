"""Keep the teacher's outputs of images that a run sees again, so that a later epoch needs no pass of the teacher.

An entry belongs to the pixels that the teacher sees, with flip, size and padding, and to its weights, the precision and
the parts of its record. It holds one image in float16, or in bfloat16 if a value does not fit. It does not depend on
the images that the teacher ran on together with it, so that a resumed run repeats it to the bit, see :data:`AT_ONCE`.
"""

import hashlib
import io
import math
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy.config import DataConfig, DistillConfig, TrainConfig
from understudy.data import Batch, DetectionData
from understudy.data.batch import Pixels
from understudy.data.transforms import padded_size
from understudy.detectors import Detector
from understudy.errors import RunError, UserError
from understudy.files import check_folder, write_atomically
from understudy.learner import Learner
from understudy.outputs import Needs, Origin, Outputs
from understudy.training import machine
from understudy.training.console import say
from understudy.training.fingerprints import detector_digest
from understudy.training.padding import images_of_step, kept_sizes
from understudy.training.pseudo_labels import with_needs
from understudy.training.teacher_pass import TeacherPass, record_of_teacher

LISTS = ("stages", "features", "class_logits", "box_raw")
"""Parts of a record that have a tensor for each level."""

AT_ONCE = 4
"""Images of a pass of the teacher on the CPU, on a GPU those of a batch; missing ones are filled up.

The last digits of an image's outputs depend on the number of images of the pass, from which the library chooses its
arithmetic, but not on the other images.
"""

SHARE_OF_MEMORY = 0.25
"""Largest part of the machine's memory that ``teacher_cache=auto`` takes."""

ENTRY_NAME = re.compile(r"[0-9a-f]{32}\.pt")
"""Names of the files of a cache in a folder, see :meth:`Store.put`."""

Entry = Mapping[str, Any]
"""The parts of one image: ``values`` (V,), all of them in one row, and ``layout``, the part, name and shape of each."""


def open_teacher(
    config: DistillConfig, learners: Sequence[Learner], teacher: Detector, data: DetectionData, unlabelled: int = 0
) -> TeacherPass:
    """Return where the teacher's outputs come from, with the cache that a config asks for.

    Args:
        config: of a run.
        learners: of this run and of those that share its teacher.
        teacher: frozen, in ``eval()``.
        data: the training split.
        unlabelled: number of unlabelled images.

    Raises:
        UserError: a cache cannot hold what the methods read, its entries would hardly be used again, or its folder has
            other files or cannot be written to.
    """
    needs = _needs(config, learners)
    chosen = config.teacher_cache
    if chosen == "off":
        return TeacherPass(teacher, needs)
    if chosen != "auto":
        if reasons := list(_obstacles(config, learners, teacher)):
            raise UserError.listing(f"teacher_cache={chosen} has no use, set teacher_cache=off:", reasons)
        if isinstance(chosen, Path):
            _check_folder(chosen)
        store = Store(None if chosen == "memory" else Path(chosen), int(config.teacher_cache_gb * 2**30))
        return TeacherCache(teacher, needs, store, config.precision)
    limit, taken, reasons = _room(config, learners, teacher, data, unlabelled)
    if reasons:
        return TeacherPass(teacher, needs, f"teacher_cache=auto: off, {'; '.join(reasons)}")
    return TeacherCache(teacher, needs, Store(None, limit), config.precision, f"teacher_cache=auto: in memory, {taken}")


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds other files, which is hardly meant, or that takes no entries."""
    check_folder(folder, f"teacher_cache={folder}")
    files = (file.name for file in (folder.iterdir() if folder.exists() else ()))
    if other := next((name for name in files if not (name.startswith(".") or ENTRY_NAME.fullmatch(name))), None):
        raise UserError(
            f"teacher_cache={folder}: expected a new or an empty folder, or one of an earlier cache; this one contains "
            f"{other}. Give another folder, e.g. teacher_cache={folder / 'teacher_cache'}."
        )


def keeps_outputs(
    config: DistillConfig, learners: Sequence[Learner], teacher: Detector, data: DetectionData, unlabelled: int = 0
) -> bool:
    """Return whether a run would keep the teacher's outputs; arguments as of :func:`open_teacher`."""
    if config.teacher_cache == "auto":
        return not _room(config, learners, teacher, data, unlabelled)[2]
    return config.teacher_cache != "off" and not list(_obstacles(config, learners, teacher))


def share_of_passes(config: TrainConfig, data: DetectionData, unlabelled: int, device: torch.device) -> float:
    """Return the part of a run's passes of the teacher that remain where its outputs are kept.

    Each view of an image is computed when it first comes in a size, and a pass is filled up, see :data:`AT_ONCE`. In
    the epochs of new variants, or else in the first one, all images are missing. Later ones are taken to be spread over
    the batches at random.

    Args:
        config: of the run, with the number of epochs.
        data: the training split.
        unlabelled: number of unlabelled images.
        device: of the teacher.
    """
    epochs, views = config.schedule.epochs, _views(config.data)
    missing = min(1.0, _sizes_and_pixels(config, data, unlabelled)[0] * views / epochs)
    new = min(1.0, (views if changing_pixels(config.data) else 1) / epochs)
    later = max(0.0, (missing - new) / (1 - new)) if new < 1 else 0.0
    batch = images_of_step(config, unlabelled=bool(unlabelled))
    at_once, counts = _at_once(batch, device), range(batch + 1)
    chances = [math.comb(batch, count) * later**count * (1 - later) ** (batch - count) for count in counts]
    passes = sum(chance * math.ceil(count / at_once) for count, chance in zip(counts, chances, strict=True))
    return new + (1 - new) * passes / math.ceil(batch / at_once)


def _at_once(images: int, device: torch.device) -> int:
    """Return the images of a pass in a batch of some images."""
    return min(AT_ONCE, images) if device.type == "cpu" else images


def _needs(config: DistillConfig, learners: Sequence[Learner]) -> Needs:
    return with_needs([learner.needs for learner in learners], pseudo_labels=config.pseudo_labels != "off")


def _room(
    config: DistillConfig, learners: Sequence[Learner], teacher: Detector, data: DetectionData, unlabelled: int
) -> tuple[int, str, list[str]]:
    """Return the bytes that ``auto`` permits, what the outputs take in words, and what prevents that they are kept."""
    limit = min(int(config.teacher_cache_gb * 2**30), int(SHARE_OF_MEMORY * _memory() / _processes(config)))
    if reasons := list(_obstacles(config, learners, teacher)):
        return limit, "", reasons
    images = len(data) + unlabelled
    pixels = _views(config.data) * _sizes_and_pixels(config, data, unlabelled)[1]
    each = _bytes_per_pixel(teacher, _needs(config, learners)) * pixels
    taken = f"the teacher's outputs of {images} images take about {_mib(each * images)}"
    if each * images > limit:
        reasons = [f"{taken}, more than the {_mib(limit)} that teacher_cache_gb and the machine's memory permit"]
    return limit, taken, reasons


def _obstacles(config: DistillConfig, learners: Sequence[Learner], teacher: Detector) -> list[str]:
    reasons = []
    for method in (method for learner in learners for method in learner.methods):
        if method.needs is None or method.keeps or any("layers" in reads for reads in method.reads.values()):
            reasons.append(f"{method.name} reads the layers of the teacher, not only its outputs")
        elif "queries" in method.needs:
            reasons.append(f"{method.name} reads the teacher's queries, which are not kept")
    if config.pseudo_labels != "off" and teacher.spec.queries:
        reasons.append("pseudo_labels reads the teacher's queries, which are not kept")
    data, changing = config.data, changing_pixels(config.data)
    if changing and not fixed_variants(data):
        reasons.append(
            f"{', '.join(changing)}: each epoch has other pixels; give each image a few fixed variants, "
            f"data.variants=4, or leave {'it' if len(changing) == 1 else 'them'} out"
        )
    return reasons


def changing_pixels(data: DataConfig) -> list[str]:
    """Return the keys by which a training image has other pixels in each epoch, with their values."""
    varied = {"shorter_side": len(set(data.shorter_side)) > 1, "colour": data.colour > 0, "scale": data.scale > 1}
    return [f"data.{key}={getattr(data, key)}" for key, other in varied.items() if other]


def fixed_variants(data: DataConfig) -> int | None:
    """Return the number of variants of an image; None: always new ones, or the number is not chosen yet."""
    return None if data.variants == "auto" else data.variants


@torch.no_grad()
def _bytes_per_pixel(teacher: Detector, needs: Needs) -> float:
    """Return the size of an entry per pixel of its image, measured on a small one; all maps grow with the image."""
    side, scale = max(128, *teacher.spec.strides), teacher.spec.scale
    device = next(teacher.parameters()).device
    outputs = teacher(torch.zeros(1, 3, scale * side, scale * side, device=device), needs=needs)
    return _entry(outputs, 0, needs)["values"].nbytes / side**2


def _sizes_and_pixels(config: TrainConfig, data: DetectionData, unlabelled: int) -> tuple[float, float]:
    """Return in how many sizes a view of a training image comes, and its pixels in all of them."""
    batch = images_of_step(config, unlabelled=bool(unlabelled))
    return kept_sizes(config.data, data, batch, math.ceil(config.schedule.epochs / _views(config.data)))


def _views(config: DataConfig) -> int:
    """Return in how many ways an image comes: its variants, or as it is and mirrored."""
    variants, mirrored = fixed_variants(config), 2 if 0 < config.flip < 1 else 1
    return variants if variants and changing_pixels(config) else min(mirrored, variants or mirrored)


def _processes(config: DistillConfig) -> int:
    return config.devices if isinstance(config.devices, int) else 1


def _mib(size: float) -> str:
    return f"{size / 2**20:,.{0 if size > 2**24 else 2}f} MiB"


def _memory() -> float:
    """Return the bytes of memory that a run has, of the machine or of a limit; infinity: they are not known."""
    memory = machine.memory_of_host()
    return memory.total / machine.RUNS_AT_ONCE if memory else math.inf


class Store:
    """Entries by key, in memory or in the files of a folder, up to a number of bytes.

    Args:
        folder: of the files; None: memory.
        limit: bytes of all entries; when it is reached, no more are added.
    """

    def __init__(self, folder: Path | None, limit: int):
        self.folder, self.limit, self.full = folder, limit, False
        self.entries: dict[str, Entry] = {}
        self.bytes = sum(file.stat().st_size for file in folder.glob("*.pt")) if folder else 0

    def get(self, key: str) -> Entry | None:
        """Return an entry; None if there is none, or its file is damaged."""
        if self.folder is None or key in self.entries:
            return self.entries.get(key)
        file = self.folder / f"{key}.pt"
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # there is none; and arbitrary bytes can make an unpickler raise any exception
            return None

    def put(self, key: str, entry: Entry, size: int) -> None:
        """Add an entry of a number of bytes, if there is room; an entry that cannot be written ends no run."""
        if self.full:
            return
        if self.bytes + size > self.limit:
            self._close(f"The teacher cache is full ({self.limit / 2**30:.3g} GiB)")
        elif self.folder is None:
            self.bytes += size
            self.entries[key] = entry
        else:
            content = io.BytesIO()
            torch.save(dict(entry), content)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self.folder / f"{key}.pt", content.getvalue(), durable=False, shared=True)
                self.bytes += size
            except (OSError, RunError) as error:
                self._close(f"The teacher cache takes no more images. {error}")

    def _close(self, reason: str) -> None:
        self.full = True
        say(f"{reason.removesuffix('.')}: other images are computed each time")


class TeacherCache(TeacherPass):
    """Return the teacher's record of a batch, running it on images that are not in the store.

    Args:
        teacher: frozen, in ``eval()``.
        needs: the parts of its record.
        store: of the entries.
        precision: of the run; outputs differ by it.
        note: for the user.
    """

    def __init__(self, teacher: Detector, needs: Needs, store: Store, precision: str, note: str | None = None):
        super().__init__(teacher, needs, note)
        self.store = store
        parts = sorted(needs.parts or ())
        self.prefix = f"{detector_digest(teacher)} {parts} {needs.levels} {precision}".encode()
        self.runs = 0

    def prepare(self, batch: Batch) -> None:
        """Note the keys of a batch, from its pixels while they are on the CPU."""
        padded = padded_size([max(sides) for sides in zip(*batch.image_sizes, strict=True)])
        images = zip(batch.drawn, batch.image_sizes, strict=True)
        batch.keys = tuple(self._key(image, size, padded) for image, size in images)

    @torch.no_grad()
    def outputs(self, batch: Batch, step: int) -> Outputs:
        """Return the record of a prepared batch."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        anchors = self.store.get(self._anchors_key(size))
        entries = [self.store.get(key) if anchors else None for key in batch.keys]
        missing = [number for number, entry in enumerate(entries) if entry is None]
        at_once = _at_once(len(entries), batch.images.device)
        for start in range(0, len(missing), at_once):
            self.runs += 1
            chosen = missing[start : start + at_once]
            filled = [*chosen, *chosen[:1] * (at_once - len(chosen))]
            found = record_of_teacher(self.teacher, batch, self.needs, filled)
            if anchors is None:  # before the entries, which are of no use without them
                anchors = {"anchors": [level.cpu() for level in found.anchors]}
                self.store.put(self._anchors_key(size), anchors, sum(level.nbytes for level in anchors["anchors"]))
            for place, number in enumerate(chosen):
                entries[number] = entry = _entry(found, place, self.needs)
                self.store.put(batch.keys[number], entry, entry["values"].nbytes)
        assert anchors is not None
        device = batch.images.device
        record = _joined([entry for entry in entries if entry is not None], device)
        return replace(
            record,
            anchors=[level.to(device) for level in anchors["anchors"]],
            size=size,
            image_sizes=tuple((height, width) for height, width in batch.image_sizes),
            origin=Origin.of(batch.images, training=False),
        )

    @contextmanager
    def emptied(self) -> Generator[None]:
        """Compute all outputs within this context, as where none is kept yet; what is kept stays."""
        kept, self.store = self.store, Store(None, self.store.limit)
        try:
            yield
        finally:
            self.store = kept

    def _key(self, drawn: Tensor | Pixels, size: Sequence[int], padded: Sequence[int]) -> str:
        """Return the key of an image, or of what it is made from, in a batch padded to a size."""
        values, view = (drawn.values, drawn.view) if isinstance(drawn, Pixels) else (drawn, None)
        found = hashlib.blake2b(self.prefix, digest_size=16)
        found.update(repr((tuple(values.shape), str(values.dtype), view, tuple(size), tuple(padded))).encode())
        found.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _anchors_key(self, size: tuple[int, int]) -> str:
        return hashlib.blake2b(self.prefix + repr(("anchors", size)).encode(), digest_size=16).hexdigest()


def _entry(outputs: Outputs, image: int, needs: Needs) -> Entry:
    """Take one image out of a record, without the stages if they are not read: they are most of it."""
    parts = [part for part in LISTS if part != "stages" or part in (needs.parts or ())]
    named = [(part, "", level[image]) for part in parts for level in getattr(outputs, part)]
    named += [("extra", name, value[image]) for name, value in outputs.extra.items()]
    row = torch.cat([value.float().flatten() for _, _, value in named]).cpu()
    half = row.half()
    return {
        "values": half if half.isfinite().all() else row.bfloat16(),
        "layout": [(part, name, tuple(value.shape)) for part, name, value in named],
    }


def _joined(entries: Sequence[Entry], device: torch.device) -> Outputs:
    """Join the entries of a batch, all of one layout, to a record in float32."""
    rows = torch.stack([entry["values"].to(device, non_blocking=True).float() for entry in entries])
    lists: dict[str, list[Tensor]] = {part: [] for part in LISTS}
    extra: dict[str, Tensor] = {}
    start = 0
    for part, name, shape in entries[0]["layout"]:
        count = torch.Size(shape).numel()
        value = rows[:, start : start + count].reshape(len(rows), *shape)
        start += count
        if part == "extra":
            extra[name] = value
        else:
            lists[part].append(value)
    return Outputs(lists["stages"], lists["features"], lists["class_logits"], lists["box_raw"], extra=extra)
