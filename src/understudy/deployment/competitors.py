"""What a benchmark compares: run folders, checkpoints and exported files, opened with all faults at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from understudy.class_matching import Aliases, no_common_name
from understudy.data import Batch, DetectionData, Limits
from understudy.errors import UserError
from understudy.evaluation import aliases_of, match_classes, open_split
from understudy.evaluation.detections import data_section
from understudy.evaluation.models import EXPORTED, Library, Runnable, is_exported, open_runnable
from understudy.evaluation.runtimes import FileRuntime
from understudy.text import expected, mismatch

CANNOT = "These detectors cannot be compared:"

TITLES: Mapping[Library, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True, slots=True)
class Competitor:
    """A detector and what runs it.

    Attributes:
        name: in the tables, unique.
        path: as given.
        detector: opened.
        library: that runs an exported file; None: PyTorch.
    """

    name: str
    path: Path
    detector: Runnable
    library: Library | None

    @property
    def runtime(self) -> str:
        """Library, version, device and, if it is not float32, precision, in words."""
        runtime = self.detector.runtime
        return runtime.description if isinstance(runtime, FileRuntime) else runtime.name

    @property
    def batch(self) -> int | None:
        """Images at once, of a file of a fixed size; None: any number."""
        runtime = self.detector.runtime
        return runtime.facts.batch if isinstance(runtime, FileRuntime) else None


def open_competitors(
    paths: Sequence[Path], libraries: Sequence[str], threads: int, device: torch.device
) -> list[Competitor]:
    """Open detectors; an ONNX file once for each library.

    Args:
        paths: run folders, checkpoints and exported files.
        libraries: that run ONNX files; none: ONNX Runtime.
        threads: of the arithmetic.
        device: of the detectors.

    Raises:
        UserError: there are none, some are given twice or cannot be opened, or no file can be run by a library; all
            faults are listed.
    """
    if not paths:
        raise UserError("No detectors to compare: expected run folders, checkpoints or exported files.")
    given = [path.resolve() for path in paths]
    faults = [f"{path} is given twice" for path in dict.fromkeys(paths) if given.count(path.resolve()) > 1]
    faults += [mismatch("--runtime", expected(Library), each, Library) for each in libraries if each not in TITLES]
    if libraries and not any(path.suffix.lower() == ".onnx" for path in paths):
        faults.append(f"--runtime {libraries[0]}: there is no .onnx file to run; leave it out")
    opened: list[tuple[Path, Library | None, Runnable]] = []
    for path in dict.fromkeys(paths):
        for library in _libraries(path, libraries):
            try:
                opened.append((path, library, open_runnable(path, device, threads=threads, library=library)))
            except UserError as error:
                said = " ".join(str(error).split())
                faults.append(said if str(path) in said or "pip install" in said else f"{path}: {said}")
    if faults:
        raise UserError.listing(CANNOT, dict.fromkeys(faults))
    names = short_names(list(dict.fromkeys(paths)))
    several = [path for path in names if len(_libraries(path, libraries)) > 1]
    return [
        Competitor(
            f"{names[path]} ({TITLES[library]})" if library and path in several else names[path],
            path,
            detector,
            library,
        )
        for path, library, detector in opened
    ]


def _libraries(path: Path, wanted: Sequence[str]) -> Sequence[Library | None]:
    """Return the libraries that run a detector, of the wanted ones those that can; None is PyTorch."""
    if not is_exported(path):
        return [None]
    known = EXPORTED[path.suffix.lower()]
    return [each for each in known if each in wanted] or known[:1]


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a unique name of each path: as few of its last parts as tell it from the others.

    >>> list(short_names([Path("runs/a/best.ckpt"), Path("deploy/a/student.onnx"), Path("b/student.onnx")]).values())
    ['a/best.ckpt', 'a/student.onnx', 'b/student.onnx']
    """
    parts = {path: path.resolve().parts for path in paths}
    return {
        path: next(
            "/".join(own[-count:])
            for count in range(2 if path.name in ("best.ckpt", "last.ckpt") else 1, len(own) + 1)
            if sum(other[-count:] == own[-count:] for other in parts.values()) == 1
        )
        for path, own in parts.items()
    }


def open_data_of(
    competitors: Sequence[Competitor], data: Path | None, split: str | None, limits: Limits | None = None
) -> tuple[DetectionData, Aliases]:
    """Open the images on which detectors are compared.

    Args:
        competitors: the data set of the first one that names one is the default.
        data: another data set.
        split: by default the validation split of that run.
        limits: of the data set; by default those of that run.

    Returns:
        The split, and the aliases of classes of that run.

    Raises:
        UserError: there is no data set, or it cannot be read.
    """
    known = [each.detector for each in competitors if data_section(each.detector.config)["path"] is not None]
    if data is None and not known:
        names = ", ".join(each.name for each in competitors)
        raise UserError(f"No data set: none of {names} names the one that it was trained on. Give one: --data DATA")
    source = known[0] if known else competitors[0].detector
    return open_split(source, data, split, limits, "--data DATA"), aliases_of(source)


def check_classes(competitors: Sequence[Competitor], data: DetectionData, aliases: Aliases) -> None:
    """Check that every detector has a class in common with the data.

    Raises:
        UserError: some have none; all are listed.
    """
    faults = []
    for each in competitors:
        try:
            match_classes(each.detector.classes, data, aliases_of(each.detector) or aliases)
        except UserError:
            said = no_common_name(each.name, each.detector.classes, f"data set {data.source}", data.classes)
            faults.append("; ".join(said))
    if faults:
        raise UserError.listing(CANNOT, faults)


def repeated(batch: Batch, times: int) -> Batch:
    """Return a batch that has the only image of another one several times."""
    lists = ("targets", "image_sizes", "original_sizes", "image_ids", "labelled")
    return replace(
        batch, drawn=batch.images.repeat(times, 1, 1, 1), **{name: getattr(batch, name) * times for name in lists}
    )
