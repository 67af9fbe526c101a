"""What a finished run tells of its energy does not depend on what can be measured afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from device_models import InputError, load_device
from fllm import accounting
from fllm.evaluation import Prompt
from hwsim import EventCounts


def prepared(*lengths: int) -> Any:
    prompts = [Prompt(tuple(range(length)), 0, False) for length in lengths]
    device = load_device("gaincell_28nm", {"window.tokens": 8})
    return SimpleNamespace(
        device=device, held_out=SimpleNamespace(test=prompts), model=None, dies=[None], period_s=1e-5
    )


def test_charge_that_cannot_be_measured_leaves_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise InputError("too many refreshes to follow")

    monkeypatch.setattr(accounting, "emulate", lambda *_, **__: None)
    monkeypatch.setattr(accounting, "measure_activity", refuse)
    found = accounting.activity_of_texts(EventCounts(), prepared(5, 20))
    assert found == {"qk": None, "av": None, "texts": 0, "energy_per_token_j": None,
                     "reason": "too many refreshes to follow"}  # fmt: skip


def test_prompts_longer_than_the_window_are_not_measured() -> None:
    found = accounting.activity_of_texts(EventCounts(), prepared(9, 20))
    assert found["qk"] is None and found["reason"] == "no test prompt fits into the window"
