"""Data sets in COCO, VOC and YOLO format, and the batches made from them."""

from understudy.data.batch import Batch
from understudy.data.check import CheckReport, check_data
from understudy.data.dataset import as_paths, open_data, open_unlabelled, shown_location, splits
from understudy.data.images import UnreadableImage, image_size, load_image
from understudy.data.limits import LIMITS, Limits
from understudy.data.loading import EpochSampler, derived_seed, evaluation_loader, training_loader
from understudy.data.records import DetectionData, Record, Records
from understudy.data.views import Augmentation

__all__ = [
    "LIMITS",
    "Augmentation",
    "Batch",
    "CheckReport",
    "DetectionData",
    "EpochSampler",
    "Limits",
    "Record",
    "Records",
    "UnreadableImage",
    "as_paths",
    "check_data",
    "derived_seed",
    "evaluation_loader",
    "image_size",
    "load_image",
    "open_data",
    "open_unlabelled",
    "shown_location",
    "splits",
    "training_loader",
]
