"""What a run says while it prepares."""

from __future__ import annotations

import pytest

from fllm.config import RunConfig
from fllm.observer import Observer
from fllm.preparation import prepare
from hwsim import native
from tests.fllm.small import TINY


class EnoughSeen(Exception):
    """The model is about to be loaded."""


class Listening(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def stage(self, what: str) -> None:
        if what == "loading the model":
            raise EnoughSeen
        self.heard.append(what)


@pytest.mark.parametrize("missing", [True, False])
def test_who_waits_for_a_compiler_is_told(missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening()
    monkeypatch.setattr(native, "compiles_at_first_use", lambda: missing)
    monkeypatch.setattr(native, "available", lambda: listening.heard.append("compiled"))
    with pytest.raises(EnoughSeen):
        prepare(RunConfig(**TINY), listening)
    compiling = ["compiling kernels, once on this machine", "compiled"] if missing else []
    assert listening.heard == ["reading the cases", *compiling]
