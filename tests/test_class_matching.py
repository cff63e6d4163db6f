"""Classes matched by name: synonyms of VOC and COCO, aliases, and hints on names that are nearly alike."""

import pytest

from understudy.checkpoints.class_names import VOC, coco_categories
from understudy.class_matching import SYNONYMS, hint_on, match_names, renamed


def test_every_class_of_voc_is_one_of_coco():
    voc, coco = VOC.split(), list(coco_categories().values())
    places = match_names(voc, coco)
    assert None not in places
    assert len(set(places)) == len(voc)
    assert dict(renamed(voc, coco, places)) == SYNONYMS
    assert match_names(coco, voc).count(None) == 60  # in the other direction, too


def test_an_equal_name_comes_before_an_alias_and_no_class_is_matched_twice():
    assert match_names(["motorbike", "motorcycle"], ["motorcycle"]) == [None, 0]
    assert match_names(["sofa", "settee"], ["couch"], {"settee": "couch"}) == [0, None]
    assert match_names(["settee"], ["Couch "], {"couch": "Settee"}) == [0]  # in either order, whatever the case
    assert match_names(["sofa"], ["couch", "bench"], {"sofa": "bench"}) == [1]  # before the synonyms


@pytest.mark.parametrize(
    ("unmatched", "others", "said"),
    [
        (["cow"], ["cat"], ""),
        ([], ["cat"], ""),
        (
            ["traffic_light", "persons"],
            ["person", "traffic light"],
            "If traffic_light and traffic light and persons and person are the same classes: "
            "data.aliases='{traffic_light: traffic light, persons: person}'.",
        ),
    ],
)
def test_names_that_are_nearly_alike_are_hinted_at(unmatched, others, said):
    assert hint_on(unmatched, others) == said
