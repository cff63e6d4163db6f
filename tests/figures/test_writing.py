"""Figures as files: never over existing ones, each with its caption."""

import pytest
from PIL import Image

from understudy import figures
from understudy.errors import UserError
from understudy.figures import Captioned


@pytest.fixture
def chart():
    return figures.bar_chart(["a", "b"], {"AP": [1.0, 2.0]}, {"AP": "#e0651a"}, x_label="level", y_label="AP in %")


def test_figures_are_written_as_png_and_svg_with_their_caption(tmp_path, chart):
    caption = "What it shows, and how to read it. " * 6
    files = figures.write_figures(tmp_path / "new", {"bars": Captioned(chart, caption)})
    assert [file.name for file in files] == ["bars.png", "bars.svg"] == figures.file_names(["bars"])
    with Image.open(files[0]) as image:
        assert image.width > 600
        assert image.getpixel((2, 2))[:3] == (255, 255, 255)
    assert "What it shows" in files[1].read_text()
    assert [file.name for file in sorted((tmp_path / "new").iterdir())] == ["bars.png", "bars.svg"]


def test_existing_files_are_all_named_unless_they_may_be_replaced(tmp_path):
    for name in ("bars.png", "bars.json"):
        (tmp_path / name).write_text("mine")
    names = ["bars.json", *figures.file_names(["bars"])]
    with pytest.raises(UserError, match=r"(?s)--force.*bars\.json.*bars\.png"):
        figures.refuse_existing(tmp_path, names)
    figures.refuse_existing(tmp_path, names, force=True)
    figures.refuse_existing(tmp_path / "new", names)
    with pytest.raises(UserError, match="is not a folder"):
        figures.refuse_existing(tmp_path / "bars.png", names, force=True)


def test_svg_elements_of_a_page_take_its_colours(chart):
    drawing = figures.as_svg(chart)
    assert drawing.startswith("<svg")
    assert "currentColor" in drawing
    assert figures.INK not in drawing
