"""What a model does on emulated parts: attention on gain cells, ternary linear layers, events and their cost."""

from hwsim.calibration import calibrate_range_scalers
from hwsim.costing import Cost, price
from hwsim.counting import EventCounts, count_events
from hwsim.functional.attention import naive_gain_cell_attention
from hwsim.functional.attention_tiled import gain_cell_attention
from hwsim.integrations.transformers import emulate, gain_cell_layers, restore, token_latency_s
from hwsim.modules import BitLinear, GainCellAttention, RangeScaler

__all__ = [
    "BitLinear",
    "Cost",
    "EventCounts",
    "GainCellAttention",
    "RangeScaler",
    "calibrate_range_scalers",
    "count_events",
    "emulate",
    "gain_cell_attention",
    "gain_cell_layers",
    "naive_gain_cell_attention",
    "price",
    "restore",
    "token_latency_s",
]
