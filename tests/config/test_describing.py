from pathlib import Path

import pytest

from understudy.config import DistillConfig, TrainConfig, commented_yaml, load_config
from understudy.config.describing import all_keys

DOCS = Path(__file__).parents[2] / "docs" / "config.md"


@pytest.mark.parametrize("cls", [TrainConfig, DistillConfig])
def test_commented_yaml_loads_back_with_all_defaults(cls, tmp_path):
    file = tmp_path / "default.yaml"
    file.write_text(commented_yaml(cls))
    examples = {key.name: key.example for key in all_keys(cls) if key.default is None}
    assert load_config(cls, file) == load_config(cls, None, examples)
    assert max(map(len, file.read_text().splitlines())) <= 120


@pytest.mark.parametrize("cls", [TrainConfig, DistillConfig])
def test_every_key_is_described_in_one_sentence(cls):
    for key in all_keys(cls):
        assert key.description.endswith("."), key.name
        assert ". " not in key.description, key.name
        assert key.example, key.name


def table() -> str:
    """The table of docs/config.md; ``python tests/config/test_describing.py`` prints it."""
    rows = ["| key | default | value | meaning |", "|---|---|---|---|"]
    for key in all_keys(DistillConfig):
        default = "required" if key.default is None else f"`{key.default}`"
        rows.append(f"| `{key.name}` | {default} | {key.expected} | {key.description} |")
    return "\n".join(rows)


def test_the_docs_list_every_key():
    assert table() in DOCS.read_text(), "copy the output of `python tests/config/test_describing.py` to docs/config.md"


if __name__ == "__main__":
    print(table())
