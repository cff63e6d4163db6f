"""Write everything that follows from the code: stored listings, the pages of the methods, the table of loss sizes.

    python docs/generate.py              # all of it; a minute or more, most of it for the sizes of detectors and losses
    python docs/generate.py --quick      # listings of methods and their pages alone; seconds; not for a new method

The suite compares the files with the code, and a test that fails names this command.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from understudy.listing import detectors, methods
from understudy.listing.recipes import number
from understudy.recipes import papers, read_recipe, recipe_names, teachers

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "methods"
RECIPES = ROOT / "docs" / "recipes.md"
LOSS_SIZES = ROOT / "docs" / "loss_sizes.md"
RECIPES_FROM_HERE = "<!-- Generated from src/understudy/recipes from here on: python docs/generate.py -->\n"
NOTE = "<!-- Generated from the docstring and the class attributes of the method: python docs/generate.py -->\n"


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out sizes of detectors and losses")
    options = parser.parse_args()
    methods.STORED.write_text(method_listing(), encoding="utf-8")
    methods.stored_facts.cache_clear()
    for page in PAGES.glob("*.md"):
        page.unlink()
    PAGES.mkdir(exist_ok=True)
    for name, facts in methods.stored_facts().items():
        (PAGES / f"{name}.md").write_text(method_page(facts), encoding="utf-8")
    (PAGES / "README.md").write_text(index_page(), encoding="utf-8")
    RECIPES.write_text(recipes_page(), encoding="utf-8")
    if not options.quick:
        detectors.STORED.write_text(detector_listing(), encoding="utf-8")
        command = [sys.executable, str(ROOT / "benchmarks" / "loss_sizes.py")]
        LOSS_SIZES.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def method_listing() -> str:
    """Return the facts about the package's own methods as JSON."""
    from understudy.listing.facts import method_facts
    from understudy.methods import METHODS

    own = [name for name, method in METHODS.items() if method.__module__.startswith("understudy.")]
    return json.dumps([method_facts(name) for name in own], indent=1) + "\n"


def detector_listing() -> str:
    """Return the sizes of all detectors as JSON, by family and backbone, a line for each."""
    from understudy.detectors import BACKBONES
    from understudy.detectors.sizes import detector_size
    from understudy.listing.facts import OWN_FAMILIES

    blocks = []
    for family in OWN_FAMILIES:
        rows = [f'    "{backbone}": {list(detector_size(f"{family}_{backbone}"))}' for backbone in BACKBONES]
        blocks.append(f'  "{family}": {{\n' + ",\n".join(rows) + "\n  }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def method_page(facts: Mapping[str, Any]) -> str:
    """Return the page about a method."""
    lines = [NOTE, f"# {facts['name']}", "", markdown(facts["summary"]), ""]
    for block in facts["body"]:
        lines += ["```math", block["math"], "```", ""] if "math" in block else [markdown(block["text"]), ""]
    lines += ["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in _table(facts)), ""]
    if facts["evidence"]:
        lines += ["## Evidence", ""]
        lines += [f"- **{key.capitalize()}.** {markdown(text)}" for key, text in facts["evidence"].items()]
        lines.append("")
    lines += ["## Options", "", f"Keys below `methods.{facts['name']}.`, with `--method {facts['name']}`:", ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    for option in facts["options"]:
        default = "required" if option["default"] is None else f"`{option['default']}`"
        lines.append(f"| `{option['name']}` | {default} | {markdown(option['meaning'])} ({option['expected']}) |")
    return "\n".join(lines).replace("|  |", "| |") + "\n"


def _table(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    prefix = facts["prefix"]
    yield "terms", ", ".join(f"`{prefix}_{term}`" for term in facts["terms"])
    if facts["optional_terms"]:
        yield "off by default", ", ".join(f"`{prefix}_{term}`" for term in facts["optional_terms"])
    for term, reads in facts["reads"].items():
        yield f"`{prefix}_{term}` reads", ", ".join(reads)
    if facts["aliases"]:
        yield "also called", ", ".join(facts["aliases"])
    for family, weights in facts["weights"].items():
        given = ", ".join(f"{term} {weight:g}" for term, weight in weights.items())
        yield f"weights, {family}", given or "none: set your own"
    if facts["ramp_steps"]:
        yield "ramp", f"the weights increase linearly from zero over {facts['ramp_steps']} steps"
    yield "source", markdown(facts["source"])
    yield "checked against", markdown(facts["checked"])


def index_page() -> str:
    """Return the list of the pages."""
    lines = ["<!-- Generated: python docs/generate.py -->\n", "# The methods, a page each", ""]
    for name, facts in methods.stored_facts().items():
        if heading := methods.HEADINGS.get(name):
            lines += [f"## {heading}", ""] if lines[-1] == "" else ["", f"## {heading}", ""]
        lines.append(f"- [{name}]({name}.md): {markdown(methods.marked(facts))}")
    return "\n".join(lines) + "\n"


def recipes_page() -> str:
    """Return the page about the recipes: the part that is written by hand, then a table for each paper."""
    written = RECIPES.read_text(encoding="utf-8").partition(RECIPES_FROM_HERE)[0] if RECIPES.exists() else ""
    lines = [RECIPES_FROM_HERE]
    recipes = [read_recipe(name) for name in recipe_names()]
    for key, paper in papers().items():
        lines += [f"### {paper.title}", "", "| recipe | table | teacher | plain | teacher AP | distilled | ours |"]
        lines.append("|---|---|---|---|---|---|---|")
        for recipe in (recipe for recipe in recipes if recipe.paper == key):
            printed, teacher = recipe.published, teachers()[recipe.teacher].title if recipe.teacher else "none"
            aps = (printed.plain, printed.teacher, printed.distilled, recipe.measured and recipe.measured.ap)
            lines.append(f"| `{recipe.name}` | {recipe.table} | {teacher} | {' | '.join(map(number, aps))} |")
        lines.append("")
    return written + "\n".join(lines).rstrip() + "\n"


def markdown(text: str) -> str:
    """Turn the markup of a docstring's text into Markdown: formulas, code and references."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    text = re.sub(r":\w+:`(?:[^`]*\.)?([^`]*)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", r"\|")


if __name__ == "__main__":
    main()
