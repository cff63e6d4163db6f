"""Figures as SVG elements and JPEGs of a page, and as files."""

import base64
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from understudy.errors import UserError
from understudy.figures.style import INK, MUTED, any_letters
from understudy.files import write_atomically


@dataclass(frozen=True, slots=True)
class Captioned:
    """A figure and its caption: what it shows, and how to read it."""

    figure: Figure
    caption: str


def refuse_existing(folder: Path, names: Sequence[str], *, force: bool = False) -> None:
    """Check, before anything is computed, that no file in a folder would be replaced.

    Raises:
        UserError: the folder is a file, or files of these names exist; all are listed.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Choose another one: --output FOLDER.")
    existing = [folder / name for name in names if (folder / name).exists()]
    if existing and not force:
        raise UserError.listing(
            "These files exist. Choose another folder (--output FOLDER), or replace them (--force):",
            map(str, existing),
        )


def file_names(figures: Sequence[str]) -> list[str]:
    """Return the names of the files that :func:`write_figures` writes."""
    return [f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")]


def write_figures(folder: Path, figures: Mapping[str, Captioned]) -> list[Path]:
    """Write figures as PNG and SVG on white, each with its caption below it, and return the files.

    Raises:
        RunError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, captioned in figures.items():
        figure = captioned.figure
        columns = int(figure.get_figwidth() * 16.5)
        lines = textwrap.wrap(captioned.caption, columns)
        figure.set_figheight(figure.get_figheight() + 0.16 * len(lines))
        # Without a layout engine, text would lie over the axes; this makes room for it.
        figure.supxlabel("\n".join(lines), fontsize=8, color=MUTED, x=0.01, ha="left")
        for suffix in ("png", "svg"):
            buffer = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if suffix == "svg" else {}
            with any_letters():
                figure.savefig(buffer, format=suffix, dpi=150, facecolor="white", metadata=metadata)
            files.append(folder / f"{name}.{suffix}")
            write_atomically(files[-1], buffer.getvalue())
    return files


def as_svg(figure: Figure) -> str:
    """Return the figure as an SVG element in the page's text colours.

    Its text stays text, so that it can be searched and the reader's fonts draw every script.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}), any_letters():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1), count=1
    )
    return drawing.replace(INK, "currentColor").replace(MUTED, "var(--muted)")


def as_image(figure: Figure) -> str:
    """Return the figure as a JPEG in a ``data:`` URL for an ``<img>``."""
    buffer = io.BytesIO()
    with any_letters():
        FigureCanvasAgg(figure).print_jpg(buffer, pil_kwargs={"quality": 85})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
