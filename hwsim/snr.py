"""How well an array multiplies: signal-to-noise ratio of a signed dot product, by effect and all together.

The data are uniform, q in [0, 1] pulses and w over the storage range around its zero level::

    x   = sum_d q_d w_d                        what is meant [V]
    y   = first product of the same data       what the emulator computes [A]
    SNR = b^2 var(x) / var(y - a - b x)        a, b: offset and gain of least squares

so a constant, and a gain that is the same for all products, are free: range scalers take them up. This is
``rho^2 / (1 - rho^2)`` of the correlation of both. Each product has cells, columns and converters of its own, so the
figures are averages over dies; all steps are the functions that attention itself is made of.

An effect alone acts on cells of a straight line, the best one through the device's own law. A cubic cell that no
training has met counts as an effect: 17.3 dB at 19.2 uA/V. (A figure of 17.6 dB is that of one cell over its range;
in a dot product the law's constant part also follows the sum of the pulses.)

Approximation: uniform data; uncorrelated products; roundings of ``parity`` are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from device_models import DeviceModel, InputError
from device_models.cell import polynomial
from device_models.retention import refresh_interval
from device_models.schema import Cell, Window
from hwsim.die import Array, Die
from hwsim.effects import EFFECTS, Drawn, is_configured, only
from hwsim.functional.cells import (
    CellDeviations,
    cell_current,
    cell_deviations,
    relaxed_voltage,
    to_levels,
    written_voltage,
)
from hwsim.functional.quantise import quantise_levels
from hwsim.functional.reads import Place, input_pulses, noisy_scores, read_out, sequence_keys, write_deviates
from hwsim.randomness import generator, seed_of

CLIP = 3.0
"""Full scale of a readout that is matched to its signal, in root mean squares of it."""
MOST_REFRESHES = 64
"""Refreshes of one token beyond which they are not followed one by one."""

_BY_AGE = ("retention", "retention spread", "refresh")
_READOUT_ERRORS = ("readout gain", "readout offset", "readout INL", "readout DNL", "readout noise")
_ROUNDS_FIRST = {"DAC INL": "storage levels", "input INL": "input levels"}
"""Errors of a converter's codes, and the rounding without which there are none."""


@dataclass(frozen=True)
class Trials:
    """Size of the Monte Carlo.

    Attributes:
        head_dim: Terms of one product.
        dies: Chips.
        columns: Products on each, 64 to a group; each with cells and circuits of its own.
        seed: Decides everything random.
    """

    head_dim: int = 64
    dies: int = 16
    columns: int = 512
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Products:
    """Dot products as meant and as computed.

    Attributes:
        meant: [V] (dies, columns).
        computed: [A] times full pulse, (dies, columns).
    """

    meant: Tensor
    computed: Tensor

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio [dB]; infinite without error, and minus infinite without signal."""
        x, y = (part.flatten() - part.mean() for part in (self.meant, self.computed))
        gain = (x @ y) / (x @ x)
        signal, error = float(gain**2 * (x @ x)), float((y - gain * x).square().sum())
        if signal == 0.0:
            return -math.inf
        return math.inf if error < 1e-12 * signal else 10.0 * math.log10(signal / error)

    @property
    def rms(self) -> float:
        """Root mean square [A] of what was computed, around zero as a readout sees it."""
        return float(self.computed.square().mean().sqrt())


@dataclass(frozen=True)
class EffectSnr:
    """One effect alone, on a token that was just written.

    Attributes:
        effect: Name as in ``hwsim.effects``, or ``cell law``, or ``readout levels and errors``.
        drawn: When it is drawn; several for the errors of the readout.
        keys: Keys of the device that set it.
        snr_db: [dB].
    """

    effect: str
    drawn: tuple[Drawn, ...]
    keys: tuple[str, ...]
    snr_db: float


@dataclass(frozen=True)
class AgeSnr:
    """Some effects at one age of the stored token.

    Attributes:
        effects: What acts, in words.
        snr_db: [dB] of tokens just written; of the oldest; of all ages of the window under one gain.
    """

    effects: str
    snr_db: tuple[float, ...]


def best_line(device: DeviceModel) -> float:
    """Return the slope [A/V] of the straight line nearest to the cell's law over the storage range."""
    low, high = (v - device.storage.v_zero for v in (device.storage.v_min, device.storage.v_max))
    nodes, weights = np.polynomial.legendre.leggauss(4)  # exact up to degree 7
    w = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    x, f = w - weights @ w / 2.0, np.polynomial.polynomial.polyval(w, polynomial(device.cell))
    return float((weights * x * f).sum() / (weights * x * x).sum())


def isolated(device: DeviceModel, *effects: str) -> DeviceModel:
    """Return a device of some of its effects alone, with cells of a straight line unless ``cell law`` is among them."""
    left = only(device, *(effect for effect in effects if effect != "cell law"))
    if "cell law" in effects:
        return left
    return replace(left, cell=Cell("linear", (best_line(device),)))


def dot_products(
    device: DeviceModel, trials: Trials, age_s: float | Tensor = 0.0, *, on_grid: bool = False
) -> Products:
    """Compute products of uniform data on the device.

    Args:
        device: The device; all its effects act.
        trials: Size of the Monte Carlo.
        age_s: [s] age of the stored token; one for all, or (columns,).
        on_grid: Whether the data lie on the converters' codes already, so that their rounding is no error.

    Raises:
        InputError: If a token of this age has been refreshed more than ``MOST_REFRESHES`` times.
    """
    device = replace(device, window=Window(device.tile.slots))  # circuits of one sub-tile suffice
    age = torch.as_tensor(age_s, dtype=torch.float64).expand(trials.columns).view(1, -1, 1, 1)
    meant, computed = [], []
    for index in range(trials.dies):
        seed = seed_of(trials.seed, "products of a die", index)
        query, key = _uniform(device, trials, seed, on_grid=on_grid)
        meant.append((query * (key - device.storage.v_zero)).sum(-1).flatten())
        computed.append(_first_product(query, key, age, device, seed))
    return Products(torch.stack(meant), torch.stack(computed))


def through_readout(
    products: Products, device: DeviceModel, trials: Trials, full_scale: float | None = None
) -> Products:
    """Send products through the readout of the device.

    Args:
        products: Of the same device and trials.
        device: The device.
        trials: Size of the Monte Carlo.
        full_scale: [A] at which the readout saturates; None matches it to ``CLIP`` root mean squares.
    """
    device = replace(device, window=Window(device.tile.slots))
    saturation = device.saturation.av
    scale = (CLIP * products.rms if full_scale is None else full_scale) / saturation
    if not scale:
        return products  # there is nothing to match to
    heads = -(-trials.columns // 64)
    query_index = torch.zeros(1, 1, dtype=torch.long)
    out = []
    for index, computed in enumerate(products.computed):
        seed = seed_of(trials.seed, "products of a die", index)
        padded = torch.nn.functional.pad(computed, (0, 64 * heads - trials.columns)).view(1, heads, 1, 64)
        read = read_out(
            padded / saturation, None, device, _place(device, seed), query_index, 0, heads,
            padded.new_full((heads,), scale),
        )  # fmt: skip
        out.append(read.flatten()[: trials.columns] * saturation)
    return Products(products.meant, torch.stack(out))


def snr_by_effect(device: DeviceModel, trials: Trials) -> list[EffectSnr]:
    """Measure each effect of a device alone, except those that need time to act; the strongest first.

    Errors of a converter's codes are measured on data that lie on its codes: the rounding is an effect of its own.
    Errors of the readout come together with its rounding, which alone makes small ones visible.
    """
    rows = []
    for effect, about in EFFECTS.items():
        if about.part != "attention" or effect in (*_BY_AGE, *_READOUT_ERRORS) or not is_configured(device, effect):
            continue
        rounds = _ROUNDS_FIRST.get(effect)
        alone = isolated(device, effect, *([rounds] if rounds else []))
        products = dot_products(alone, trials, on_grid=rounds is not None)
        if effect == "readout levels":
            products = through_readout(products, alone, trials)
        rows.append(EffectSnr(effect, (about.drawn,), effect_keys(device, effect), products.snr_db))
    if device.cell.law != "linear":
        alone = isolated(device, "cell law")
        rows.append(EffectSnr("cell law", ("design",), ("cell.law",), dot_products(alone, trials).snr_db))
    if errors := [effect for effect in _READOUT_ERRORS if is_configured(device, effect)]:
        alone = isolated(device, "readout levels", *errors)
        products = through_readout(dot_products(alone, trials), alone, trials)
        keys = tuple(key for effect in errors for key in effect_keys(device, effect))
        drawn = tuple(dict.fromkeys(EFFECTS[effect].drawn for effect in errors))
        rows.append(EffectSnr("readout levels and errors", drawn, keys, products.snr_db))
    return sorted(rows, key=lambda row: row.snr_db)


def snr_by_age(device: DeviceModel, token_period_s: float, trials: Trials) -> list[AgeSnr]:
    """Measure retention alone, and all effects together, at three ages.

    Args:
        device: The device.
        token_period_s: [s] time between two tokens.
        trials: Size of the Monte Carlo.

    Returns:
        Rows of three figures: just written, oldest token of the window, and all its ages under one gain; one figure
        where the device does not decay.
    """
    tokens = device.window.tokens
    ages: list[float | Tensor] = [0.0]
    if device.decays:
        spread = torch.arange(trials.columns) * tokens // trials.columns
        ages += [(tokens - 1) * token_period_s, spread.double() * token_period_s]
    rows = []
    refreshed = ["refresh", "storage levels"] if is_configured(device, "refresh") else []
    for effects in (["retention"], ["retention", "retention spread"]) if device.decays else ():
        if is_configured(device, effects[-1]):
            alone = isolated(device, *effects, *refreshed)
            name = "retention, median cell" if len(effects) == 1 else "retention with its spread"
            found = tuple(dot_products(alone, trials, age, on_grid=bool(refreshed)).snr_db for age in ages)
            rows.append(AgeSnr(name + (", refreshed" if refreshed else ""), found))
    together = [dot_products(device, trials, age) for age in ages]
    rows.append(AgeSnr("all effects", tuple(products.snr_db for products in together)))
    if device.cell.law != "linear":
        straight = replace(device, cell=Cell("linear", (best_line(device),)))
        trained = tuple(dot_products(straight, trials, age).snr_db for age in ages)
        rows.append(AgeSnr("all effects but the cell law", trained))
    matched = [through_readout(products, device, trials) for products in together]
    rows.append(AgeSnr(f"all, then readout at {CLIP:g} rms", tuple(products.snr_db for products in matched)))
    if device.readout.range == "fixed":
        fixed = [through_readout(products, device, trials, device.saturation.av) for products in together]
        ratio = device.saturation.av / together[0].rms
        rows.append(
            AgeSnr(f"all, then readout as it is ({ratio:.1f} rms)", tuple(products.snr_db for products in fixed))
        )
    return rows


def gate_voltage(
    stored: Tensor, age: Tensor, device: DeviceModel, cells: CellDeviations, place: Place, array: Array, written: Tensor
) -> Tensor:
    """Return the voltage [V] at an age [s] of values that were written, refreshed as often as is due, and relaxed.

    Args:
        stored: [V] before the converter, (b, kv_heads, slots, head_dim).
        age: [s] in float64, broadcasting against ``stored``.
        device: The device.
        cells: Static deviations.
        place: Noise keys.
        array: Array of keys or of values.
        written: (b or 1, slots) write index of each slot's token.

    Raises:
        InputError: If a value of this age has been refreshed more than ``MOST_REFRESHES`` times.
    """
    interval, epochs = refresh_interval(device), torch.zeros_like(age)
    if interval is not None:
        epochs = (age / interval).floor()
    most = int(epochs.max())
    if most > MOST_REFRESHES:
        raise InputError(
            "too many refreshes to follow", where=device.name, expected=f"at most {MOST_REFRESHES} of one token",
            received=most, remedy="refresh less often, or look at a younger token",
        )  # fmt: skip
    target = to_levels(stored, device)
    v = written_voltage(target, device, cells, write_deviates(place, array, device, written, 0, target))
    for epoch in range(1, most + 1):
        assert interval is not None
        target = to_levels(relaxed_voltage(v, v.new_full((), interval), device, cells), device)
        again = written_voltage(target, device, cells, write_deviates(place, array, device, written, epoch, target))
        v = torch.where(epochs >= epoch, again, v)
    return relaxed_voltage(v, (age - epochs * (interval or 0.0)).to(v.dtype), device, cells)


def _uniform(device: DeviceModel, trials: Trials, seed: int, *, on_grid: bool) -> tuple[Tensor, Tensor]:
    """Draw pulses [1] and voltages [V], each (1, columns, 1, head_dim): one head for each product."""
    made, storage = generator(seed, "data"), device.storage
    shape = (1, trials.columns, 1, trials.head_dim)
    query, key = (torch.rand(shape, generator=made, dtype=torch.float64) for _ in range(2))
    key = storage.v_min + (storage.v_max - storage.v_min) * key
    return (quantise_levels(query, device.input.levels, 0.0, 1.0), to_levels(key, device)) if on_grid else (query, key)


def _place(device: DeviceModel, seed: int) -> Place:
    return Place(Die(seed, device), sequence_keys(seed, 1, torch.device("cpu")))


def _first_product(query: Tensor, key: Tensor, age: Tensor, device: DeviceModel, seed: int) -> Tensor:
    """Return the signed product [A] of each head, as it leaves the bit line: (heads,)."""
    heads, place = query.shape[1], _place(device, seed)
    index = torch.zeros(1, dtype=torch.long)
    pulses = input_pulses(query, device, place, index[None], heads)
    cells = cell_deviations(place.die, "key", device, heads, index, query.shape[-1], query.dtype)
    gate = gate_voltage(key, age, device, cells, place, "key", index[None])
    product = (pulses * cell_current(gate, device, cells)).sum(-1, keepdim=True)
    saturation = device.saturation.qk
    scores = noisy_scores(product / saturation, pulses, device, place, index[None], index, heads)
    if (bits := device.readout_qk.bits) is not None:  # the codes of [0, 1], continued below zero
        codes = 2**bits - 1 if device.activation.kind == "softmax" else 2 ** (bits + 1) - 1
        scores = quantise_levels(scores, codes, -1.0, 1.0)
    return scores.flatten() * saturation


def effect_keys(device: DeviceModel, effect: str) -> tuple[str, ...]:
    """Return the keys that differ from what would leave the effect out."""
    found = []
    for key, neutral in EFFECTS[effect].neutral.items():
        section, name = key.split(".")
        if getattr(getattr(device, section), name) != neutral:
            found.append(key)
    return tuple(found)
