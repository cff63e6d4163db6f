"""Names and layouts of mmdet's parameters."""

import pytest
import torch
from foreign_files import as_mmdet, plain

from understudy.checkpoints.mmdet import layout_of
from understudy.checkpoints.mmdet_keys import UNKNOWN, translate
from understudy.checkpoints.mmdet_layout import MMDetLayout
from understudy.detectors.families import FAMILIES


def layout(family: str) -> MMDetLayout:
    found = layout_of(FAMILIES[family])
    assert found
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_translation_is_the_inverse_of_mmdets_names(family):
    network = plain(family)
    expected = network.state_dict()
    found = translate(as_mmdet(network, family), layout(family))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_unknown_keys_keep_their_names():
    found = translate({"bbox_head.novel.weight": torch.ones(1)}, layout("gfl"))
    assert list(found) == [UNKNOWN + "bbox_head.novel.weight"]


def test_one_box_for_all_classes_is_given_to_each():
    state = {"roi_head.bbox_head.fc_cls.bias": torch.arange(4.0), "roi_head.bbox_head.fc_reg.bias": torch.arange(4.0)}
    found = translate(state, layout("faster_rcnn"))
    assert found["roi_heads.box_predictor.cls_score.bias"].tolist() == [3, 0, 1, 2]
    assert found["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0] * 4 + [0, 1, 2, 3] * 3
