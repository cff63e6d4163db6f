"""Detectors, opened so that methods can read them."""

from understudy.detectors.base import Detector
from understudy.detectors.faster_rcnn import FasterRCNNDetector, RoIOutputs
from understudy.detectors.fcos import FCOSDetector
from understudy.detectors.gfl import GFLDetector
from understudy.detectors.plain import BACKBONES, FAMILIES
from understudy.detectors.retinanet import RetinaNetDetector
from understudy.detectors.zoo import DETECTORS, build_detector, open_detector

__all__ = [
    "BACKBONES",
    "DETECTORS",
    "FAMILIES",
    "Detector",
    "FCOSDetector",
    "FasterRCNNDetector",
    "GFLDetector",
    "RetinaNetDetector",
    "RoIOutputs",
    "build_detector",
    "open_detector",
]
