"""What a model does on emulated parts: attention on gain cells, ternary linear layers, events and their cost."""

from hwsim.adaptation import Adaptation, adapt_range_scalers, linear_twin
from hwsim.calibration import calibrate_range_scalers, calibrate_readout
from hwsim.costing import Cost, price
from hwsim.counting import EventCounts, count_events
from hwsim.die import Die
from hwsim.functional.attention import naive_gain_cell_attention
from hwsim.functional.attention_tiled import gain_cell_attention
from hwsim.integrations.transformers import emulate, noise_key, restore, token_latency_s
from hwsim.modules import BitLinear, GainCellAttention, RangeScaler, gain_cell_layers

__all__ = [
    "Adaptation",
    "BitLinear",
    "Cost",
    "Die",
    "EventCounts",
    "GainCellAttention",
    "RangeScaler",
    "adapt_range_scalers",
    "calibrate_range_scalers",
    "calibrate_readout",
    "count_events",
    "emulate",
    "gain_cell_attention",
    "gain_cell_layers",
    "linear_twin",
    "naive_gain_cell_attention",
    "noise_key",
    "price",
    "restore",
    "token_latency_s",
]
