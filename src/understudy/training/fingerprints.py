"""Fingerprints of what a run reads: its data and its teacher's weights, so that a resumed run reads the same."""

from collections.abc import Mapping
from typing import Any

from understudy.data import DetectionData
from understudy.data.digests import bytes_of, digest, digest_of_annotations, digest_of_files, joined_digest
from understudy.detectors import Detector

_TEACHER = "weights of the teacher"


def fingerprints(
    train: DetectionData, val: DetectionData, unlabelled: DetectionData | None, teacher: Detector | None
) -> dict[str, str]:
    """Return a digest of each part of what a run reads, by the part's name."""
    found = {}
    for key, data in {"data.train": train, "data.val": val}.items():
        found[_annotations(key)] = digest_of_annotations(data)
        found[_files(key)] = digest_of_files(data)
    if unlabelled is not None:
        found[_files("data.unlabelled")] = digest_of_files(unlabelled)
    if teacher is not None:
        found[_TEACHER] = weights_digest(teacher)
    return found


def split_digest(environment: Mapping[str, Any], key: str) -> str | None:
    """Return the digest of a split of a run, as :func:`~understudy.data.digests.digest_of_split` does.

    Args:
        environment: the content of the run's ``environment.json``.
        key: ``"data.train"``, as far as it is used, or ``"data.val"``.

    Returns:
        The digest; None if the run was made by a version that did not record it.
    """
    found = environment.get("fingerprints")
    parts = [found.get(_annotations(key)), found.get(_files(key))] if isinstance(found, dict) else [None]
    return joined_digest(*map(str, parts)) if all(parts) else None


def teacher_digest(environment: Mapping[str, Any]) -> str | None:
    """Return the digest of the teacher's weights in the content of ``environment.json``; None if it has none."""
    found = environment.get("fingerprints")
    return found.get(_TEACHER) if isinstance(found, dict) else None


def weights_digest(detector: Detector) -> str:
    """Return a digest of the names and values of a detector's weights."""
    weights = sorted(detector.network.state_dict().items())
    return digest(part for name, weight in weights for part in (name.encode(), bytes_of(weight)))


def detector_digest(detector: Detector) -> str:
    """Return a digest of what a detector computes: weights, and the settings of its layers, pixels and anchors.

    A version of PyTorch or of torchvision whose layers have other attributes changes it.
    """
    settings = [weights_digest(detector), repr(detector.spec)]
    for name, module in detector.network.named_modules():
        plain = {key: value for key, value in vars(module).items() if key != "training" and _is_plain(value)}
        settings.append(f"{name} {type(module).__qualname__} {sorted(plain.items())}")
    return digest(text.encode() for text in settings)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _annotations(key: str) -> str:
    return f"annotations of {key}"


def _files(key: str) -> str:
    return f"image files of {key} (names and sizes)"
