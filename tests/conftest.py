"""What holds for all tests: one thread each, as several run at once, and slow ones only when asked for."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Have kernels in Triton interpreted unless a GPU is asked for; Triton looks at this once, when it is imported."""
    if "gpu" not in config.option.markexpr:
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless ``-m`` asks for it."""
    if "slow" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))


def pytest_collection_finish() -> None:
    """Take modules and tests, which stay, out of the searches for garbage: one among them takes half a second."""
    gc.freeze()


@contextmanager
def sketched() -> Iterator[None]:
    """Make figures, but save their words alone: most of the time that a page takes is drawing."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    def words(figure: Figure, file: IO[bytes], **_: object) -> None:
        file.write("\n".join(text.get_text() for text in figure.findobj(Text)).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", words)
        yield


@pytest.fixture
def _sketched() -> Iterator[None]:
    with sketched():
        yield
