"""Signal-to-noise ratio of a product on the arrays of the ternary layers: each effect alone, and all together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from device_models.schema import DeviceModel
from hwsim.effects import EFFECTS, is_configured, only
from hwsim.functional.bitlinear import activation_codes
from hwsim.functional.conversion_noise import Conversions
from hwsim.functional.linear_arrays import array_product, made_weights, range_of_design
from hwsim.randomness import generator, seed_of
from hwsim.snr import EffectSnr, Products, effect_keys

TOGETHER = "all effects"


@dataclass(frozen=True)
class LinearTrials:
    """Size of the Monte Carlo.

    Attributes:
        inputs: Terms of one product.
        outputs: Columns.
        tokens: Vectors of activations, normal, scaled to 8 bits by their largest magnitude.
        dies: Chips.
        seed: Decides everything random.
    """

    inputs: int = 256
    outputs: int = 64
    tokens: int = 64
    dies: int = 8
    seed: int = 0


_SETS = {"linear converter": ("linear.adc_bits", "linear.input_cycles")}
"""Keys that set the strength of an effect whose own key only switches it."""


def linear_snr_by_effect(device: DeviceModel, trials: LinearTrials) -> list[EffectSnr]:
    """Measure each effect of the arrays of a device alone, and all together; the strongest first.

    Noise of the converter is measured together with its rounding, without which it has no unit. Weights are -1, 0 and
    1 with equal chances; the converter's range is that of the least error on other vectors.
    """
    rows = []
    found = [name for name, effect in EFFECTS.items() if effect.part == "linear" and is_configured(device, name)]
    for name in found:
        alone = only(device, name)  # keeps what the effect needs
        parts = (*EFFECTS[name].needs, name)
        keys = tuple(key for part in parts for key in _SETS.get(part) or effect_keys(device, part))
        drawn = tuple(dict.fromkeys(EFFECTS[part].drawn for part in (*EFFECTS[name].needs, name)))
        label = " and ".join((*EFFECTS[name].needs, name.rpartition(" ")[2] if EFFECTS[name].needs else name))
        rows.append(EffectSnr(label, drawn, keys, linear_products(alone, trials).snr_db))
    if len(found) > 1:
        drawn = tuple(dict.fromkeys(EFFECTS[name].drawn for name in found))
        keys = tuple(key for name in found for key in effect_keys(device, name))
        rows.append(EffectSnr(TOGETHER, drawn, keys, linear_products(device, trials).snr_db))
    return sorted(rows, key=lambda row: row.snr_db)


def linear_products(device: DeviceModel, trials: LinearTrials) -> Products:
    """Compute products of random activations and weights on the arrays of a device, and exactly."""
    array = device.linear
    rng = generator(trials.seed, "products of a ternary layer")
    weights = torch.randint(-1, 2, (trials.outputs, trials.inputs), generator=rng)
    meant, computed = [], []
    for index in range(trials.dies):
        made = made_weights(weights, array, seed_of(trials.seed, "die of a ternary layer", index), "layer")
        x, sample = (_activations(trials, rng) for _ in range(2))
        full_scale = None if array.adc_range == "ideal" else range_of_design(sample, weights, array)
        keys = Conversions(seed_of(trials.seed, "noise", index) + torch.arange(trials.tokens), "layer")
        noise = keys if array.noise else None
        meant.append((x @ weights.double().T).flatten())
        computed.append(array_product(x, made, array, full_scale, noise).flatten())
    return Products(torch.stack(meant), torch.stack(computed))


def _activations(trials: LinearTrials, rng: torch.Generator) -> Tensor:
    codes, _ = activation_codes(torch.randn(trials.tokens, trials.inputs, generator=rng, dtype=torch.float64))
    return codes
