"""Rules of the source tree: which room may import which, where families are named, how long a file may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import understudy
from understudy.detectors.families import FAMILIES

SOURCE = Path(understudy.__file__).parent
FILES = {file.relative_to(SOURCE).as_posix(): file for file in sorted(SOURCE.rglob("*.py"))}
LINES = 430
"""Most lines of a file."""

FAMILY_FILES = {
    f"{room}/{prefix}{family}.py"
    for family in FAMILIES
    for room, prefix in (("networks", ""), ("detectors", ""), ("checkpoints", "mmdet_"))
}

ABOVE = {  # a room and the rooms that it must not import
    "outputs": {"methods", "detectors", "learner", "pairing", "training", "config", "data", "cli"},
    "functional": {"methods", "detectors", "learner", "pairing", "boxes", "training", "cli"},
    "boxes": {"methods", "detectors", "learner", "pairing", "training", "cli"},
    "methods": {"detectors", "learner", "pairing", "training", "evaluation", "checkpoints", "config", "cli"},
    "detectors": {"methods", "learner", "pairing", "training", "evaluation", "checkpoints", "config", "cli"},
    "pairing": {"methods", "detectors", "learner", "training", "cli"},
    "learner": {"training", "evaluation", "checkpoints", "config", "compare", "report", "cli"},
    "checkpoints": {"methods", "training", "evaluation", "deployment", "compare", "report", "cli"},
    "data": {"methods", "detectors", "training", "evaluation", "deployment", "compare", "report", "cli"},
    "evaluation": {"methods", "learner", "training", "deployment", "compare", "report", "analysis", "cli"},
    "deployment": {"methods", "training", "compare", "report", "analysis", "studies", "figures", "demo", "cli"},
    "training": {"deployment", "compare", "report", "analysis", "diagnosis", "studies", "listing", "demo", "cli"},
    "compare": {"report", "analysis", "diagnosis", "studies", "figures", "listing", "demo", "cli"},
    "diagnosis": {"report", "analysis", "studies", "figures", "listing", "demo", "cli"},
    "studies": {"analysis", "diagnosis", "listing", "demo", "cli"},
    "report": {"studies", "diagnosis", "listing", "demo", "cli"},
    "figures": {
        "report",
        "analysis",
        "compare",
        "deployment",
        "training",
        "evaluation",
        "data",
        "detectors",
        "listing",
        "demo",
        "cli",
    },
    "analysis": {"report", "studies", "listing", "demo", "cli"},
}


def imports(file: Path) -> Iterator[str]:
    """Names of the package's rooms that a file imports, apart from those for type checkers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(node) for block in checked for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "understudy":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("understudy."))


def room(name: str) -> str:
    """The room of a file: its folder, or its own name."""
    return name.partition("/")[0].removesuffix(".py")


def test_imports_go_one_way():
    for name, file in FILES.items():
        found = set(imports(file)) - {room(name)}
        assert not found & ABOVE.get(room(name), set()), name
        assert room(name) in ("cli", "__main__") or "cli" not in found, name


def test_networks_are_copied_into_exports_and_need_nothing_of_ours():
    assert [name for name, file in FILES.items() if room(name) == "networks" and any(imports(file))] == []


def text_constants(file: Path) -> Iterator[tuple[int, str]]:
    """Strings of a file with their lines, without docstrings and without the default weights and shares of methods."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.ClassDef) and file.parent.name == "methods":
            for statement in node.body:
                if isinstance(statement, ast.Assign) and any(
                    isinstance(target, ast.Name) and target.id in ("weights", "largest_share")
                    for target in statement.targets
                ):
                    skipped |= {id(part) for part in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def test_families_are_named_in_their_table_and_in_their_own_files_alone():
    searched = set(FILES) - FAMILY_FILES - {"detectors/families.py"}
    found = [
        f"{name}:{line}: {text}"
        for name in sorted(searched)
        for line, text in text_constants(FILES[name])
        if text.strip("_") in FAMILIES
    ]
    assert found == []


def test_no_file_is_overfull():
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    assert {name: count for name, count in lines.items() if count > LINES} == {}


def test_every_file_of_a_method_is_in_methods_and_has_its_test():
    from understudy.methods import METHODS

    tests = Path(__file__).with_name("methods")
    for name, method in METHODS.items():
        assert (tests / f"test_{name}.py").is_file(), f"add the reference test tests/methods/test_{name}.py"
        assert method.__module__.startswith("understudy.methods."), name
    files = {method.__module__.rpartition(".")[2] for method in METHODS.values()}
    for name, file in FILES.items():
        if room(name) == "methods" and "(Method):" in file.read_text(encoding="utf-8"):
            assert file.stem in files, f"add the class in {name} to METHODS in methods/__init__.py"
