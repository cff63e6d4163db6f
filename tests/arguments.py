"""Config keys as arguments of a command."""

import json
from collections.abc import Mapping
from pathlib import Path


def arguments_of(keys: Mapping[str, object]) -> list[str]:
    """Write keys as ``key=value``; null, numbers, lists and mappings as YAML."""
    texts = {
        key: str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)
        for key, value in keys.items()
    }
    return [f"{key}={text}" for key, text in texts.items()]
