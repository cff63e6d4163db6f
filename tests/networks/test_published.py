"""torchvision's own detectors, as its published weights need them."""

import pytest
from torchvision import models

from understudy.detectors.shapes import shapes_only
from understudy.networks import PUBLISHED, build_network


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_detectors_are_what_torchvision_builds_for_its_weights(name, monkeypatch):
    weights = models.get_model_weights(name.removeprefix("torchvision/")).COCO_V1
    with shapes_only():
        ours = build_network(name, 90 if "fasterrcnn" in name else 91)
        monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: ours.state_dict())
        theirs = models.get_model(name.removeprefix("torchvision/"), weights=weights)
    assert [repr(module) for module in ours.modules()] == [repr(module) for module in theirs.modules()]
    norms = [
        (module.eps, theirs.get_submodule(key).eps) for key, module in ours.named_modules() if hasattr(module, "eps")
    ]
    assert norms
    assert all(one == other for one, other in norms)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert (ours.roi_heads if hasattr(ours, "roi_heads") else ours).score_thresh == 0.05
