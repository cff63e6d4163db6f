"""Detectors, opened so that methods can read them."""

from understudy.detectors.base import Detector
from understudy.detectors.build import build_detector, detector_names, open_detector
from understudy.detectors.dense import DenseDetector
from understudy.detectors.families import FAMILIES, Family
from understudy.detectors.faster_rcnn import FasterRCNNDetector, RoIOutputs
from understudy.detectors.fcos import FCOSDetector
from understudy.detectors.gfl import GFLDetector
from understudy.detectors.larger_images import with_larger_images
from understudy.detectors.retinanet import RetinaNetDetector
from understudy.networks.backbones import BACKBONES

__all__ = [
    "BACKBONES",
    "FAMILIES",
    "DenseDetector",
    "Detector",
    "FCOSDetector",
    "Family",
    "FasterRCNNDetector",
    "GFLDetector",
    "RetinaNetDetector",
    "RoIOutputs",
    "build_detector",
    "detector_names",
    "open_detector",
    "with_larger_images",
]
