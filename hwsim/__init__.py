"""What a model does on emulated parts: attention on gain cells, ternary linear layers, events and their cost.

Names are imported when they are asked for: pricing a model by its configuration needs no tensor library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwsim.activity import measure_activity
    from hwsim.adaptation import Adaptation, adapt_range_scalers, linear_twin
    from hwsim.analytic import analytic_events
    from hwsim.calibration import calibrate_range_scalers, calibrate_readout
    from hwsim.costing import Cost, price
    from hwsim.counting import count_events
    from hwsim.die import Die
    from hwsim.events import EventCounts
    from hwsim.functional.attention import naive_gain_cell_attention
    from hwsim.functional.attention_tiled import gain_cell_attention
    from hwsim.functional.kernel_loop import attention_kernel
    from hwsim.integrations.ring_cache import ring_cache
    from hwsim.integrations.transformers import emulate, noise_key, restore, token_latency_s
    from hwsim.linear import BitLinear
    from hwsim.linear_calibration import calibrate_linear_arrays
    from hwsim.modules import GainCellAttention, RangeScaler, gain_cell_layers

_HOME = {
    "Adaptation": "adaptation",
    "BitLinear": "linear",
    "Cost": "costing",
    "Die": "die",
    "EventCounts": "events",
    "GainCellAttention": "modules",
    "RangeScaler": "modules",
    "adapt_range_scalers": "adaptation",
    "analytic_events": "analytic",
    "attention_kernel": "functional.kernel_loop",
    "calibrate_linear_arrays": "linear_calibration",
    "calibrate_range_scalers": "calibration",
    "calibrate_readout": "calibration",
    "count_events": "counting",
    "emulate": "integrations.transformers",
    "gain_cell_attention": "functional.attention_tiled",
    "gain_cell_layers": "modules",
    "linear_twin": "adaptation",
    "measure_activity": "activity",
    "naive_gain_cell_attention": "functional.attention",
    "noise_key": "integrations.transformers",
    "price": "costing",
    "restore": "integrations.transformers",
    "ring_cache": "integrations.ring_cache",
    "token_latency_s": "integrations.transformers",
}

__all__ = [
    "Adaptation",
    "BitLinear",
    "Cost",
    "Die",
    "EventCounts",
    "GainCellAttention",
    "RangeScaler",
    "adapt_range_scalers",
    "analytic_events",
    "attention_kernel",
    "calibrate_linear_arrays",
    "calibrate_range_scalers",
    "calibrate_readout",
    "count_events",
    "emulate",
    "gain_cell_attention",
    "gain_cell_layers",
    "linear_twin",
    "measure_activity",
    "naive_gain_cell_attention",
    "noise_key",
    "price",
    "restore",
    "ring_cache",
    "token_latency_s",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
