"""Events of what a test runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hwsim import EventCounts, count_events


def counted(run: Callable[[], object]) -> EventCounts:
    with torch.no_grad(), count_events() as counts:
        run()
    return counts


def whole(model: Any, ids: Tensor) -> EventCounts:
    return counted(lambda: model(input_ids=ids, use_cache=False))
