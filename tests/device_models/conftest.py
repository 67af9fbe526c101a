"""Device files of the tests: a shipped one, read with its parts as a tree, changed and written again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from device_models.loading import preset_folder, read_device_file

Tree = dict[str, Any]


@pytest.fixture(scope="session")
def shipped_tree() -> Tree:
    return read_device_file(preset_folder() / "gaincell_28nm.yaml")[0]


@pytest.fixture
def tree(shipped_tree: Tree) -> Tree:
    return copy.deepcopy(shipped_tree)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    def to_file(content: object) -> Path:
        path = tmp_path / "device.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    return to_file
