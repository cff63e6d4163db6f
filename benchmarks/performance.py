"""Measure what a step, the data, inference and the start cost, and compare the figures with their targets.

    python benchmarks/performance.py                  # all sections; an hour on two cores
    python benchmarks/performance.py data inference   # these alone
    python benchmarks/performance.py --write          # also into docs/performance.md, between the section's marks

Figures are ratios of CPU times that were measured in turns in one process, since machines are shared. Each section is a
module `performance_<section>.py` with a function `rows`.
"""

import argparse
import re
from importlib import import_module
from pathlib import Path

import torch

from understudy.training.environment import environment

SECTIONS = ("steps", "runs", "data", "inference")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def table(section: str) -> str:
    """Measure a section, printing each row at once, and return its table in Markdown."""
    lines = ["| what | found | target | reached | note |", "|---|---|---|---|---|"]
    for row in import_module(f"performance_{section}").rows():
        lines.append(f"| {' | '.join(row.cells())} |")
        print(lines[-1], flush=True)
    facts = environment()
    where = f"commit {facts['commit']}, {facts['processor']}, one thread"
    lines += ["", f"`python benchmarks/performance.py {section}`, {where}."]
    return "\n".join(lines)


def write(section: str, text: str) -> None:
    """Replace what the page has between the marks of the section."""
    mark = f"<!-- {section} -->"
    page = PAGE.read_text()
    if page.count(mark) != 2:
        raise SystemExit(f"{PAGE} needs the line {mark} twice")
    PAGE.write_text(re.sub(f"{mark}.*{mark}", lambda _: f"{mark}\n{text}\n{mark}", page, flags=re.DOTALL))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=SECTIONS)
    parser.add_argument("--write", action="store_true", help="also into docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.sections:
        print(f"\n{name}", flush=True)
        measured = table(name)
        if options.write:
            write(name, measured)
