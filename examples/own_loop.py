"""Distil your own torchvision detector in a plain PyTorch loop, without a trainer or a config.

    python examples/own_loop.py

To run in seconds, it uses small untrained detectors and random images. Replace both by your own.
"""

import torch
from torch.nn import BatchNorm2d
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from understudy import Balance, Learner, build_methods, open_detector, pair


def detector(name: str) -> RetinaNet:
    """Build a torchvision RetinaNet. Replace it by any RetinaNet, FCOS or FasterRCNN of your own."""
    pyramid = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256), "trainable_layers": 5}
    return RetinaNet(resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=BatchNorm2d, **pyramid), 3)


def batches(steps: int):
    """Yield images (N, 3, H, W) in 0..1 and, for each, its boxes (xyxy in pixels) and labels (from 0)."""
    for _ in range(steps):
        target = {"boxes": torch.tensor([[4.0, 8, 40, 50], [20.0, 30, 60, 60]]), "labels": torch.tensor([0, 2])}
        yield torch.rand(2, 3, 64, 64), [target, target]


def main(steps: int = 3) -> RetinaNet:
    """Train the student and return its network."""
    network = detector("resnet18")
    student, teacher = open_detector(network), open_detector(detector("resnet34")).eval().requires_grad_(False)
    pairing = pair(student.spec, teacher.spec)  # matches levels, and classes if their names are given
    methods, weights = build_methods({"frs": {}, "pkd": {}}, pairing.student, pairing.teacher, balance=0.8)
    learner = Learner(student, methods, pairing)
    balance = Balance(learner, weights)  # weights follow from shares of the gradient; without: weights[name].at(step)
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3, momentum=0.9)
    learner.check_optimizer(optimizer)  # holds the student and the adapters of the methods
    for step, (images, targets) in enumerate(batches(steps)):
        with torch.no_grad():
            teacher_outputs = teacher(images, needs=learner.needs)
        losses = learner(images, targets, teacher_outputs)  # all terms by name, unweighted
        loss = balance(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(step, *(f"{name}={value.item():.4f}" for name, value in losses.items()))
    return network  # plain torchvision: save and deploy it without understudy


if __name__ == "__main__":
    main()
