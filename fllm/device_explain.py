"""``fllm device explain``: what a designer asks first of a device, as tables. The figures come from below."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from device_models import DeviceModel, format_quantity
from device_models.converters import highest_code, readout_step
from device_models.retention import refresh_interval, stored_voltage
from device_models.schema import Refresh
from device_models.timeline import attention_timeline
from hwsim.baselines import ATTENTION, in_scope
from hwsim.clipping import LayerClipping, clip_rates
from hwsim.costing import price
from hwsim.counting import count_events, record_attention
from hwsim.effects import idle_effects
from hwsim.functional.cells import full_scale_current
from hwsim.functional.layout import slot_layout
from hwsim.linear_snr import TOGETHER, LinearTrials, linear_snr_by_effect
from hwsim.snr import CLIP, MOST_REFRESHES, Trials, best_line, snr_by_age, snr_by_effect

ELECTRON = 1.602176634e-19
"""[C] SI definition."""
_CONSTANT = {"exponential": "tau", "stretched": "tau", "log_self_limited": "t0", "constant_current": "rate"}
"""Constant of each retention law that sets its time scale."""
_LOWEST_DB = -20.0
"""[dB] below which a signal is lost, and its ratio to the noise an accident of the trials."""


def explain(console: Console, device: DeviceModel, token_period_s: float, head_dim: int) -> None:
    """Print resolution, retention and signal-to-noise ratio of one head.

    Args:
        console: Where to.
        device: The device.
        token_period_s: [s] time between two tokens.
        head_dim: Dimensions of the head.
    """
    trials = Trials(head_dim)
    tokens, oldest = device.window.tokens, (device.window.tokens - 1) * token_period_s
    energy_j, latency_s = head_cost(device, head_dim)
    console.print(device.title, style="bold")
    console.print(
        f"One head of {head_dim} dimensions and {tokens} tokens:"
        f" {format_quantity(energy_j, 'J')} and {format_quantity(latency_s, 's')} per token,"
        f" without refresh."
    )
    console.print(
        f"A token every {format_quantity(token_period_s, 's')}:"
        f" the oldest in the window is {format_quantity(oldest, 's')} old."
    )
    section(console, "Resolution", resolution_table(device))
    if device.decays:
        section(console, "Retention", retention_table(device, token_period_s, head_dim))
    effects = effects_table(device, trials)
    section(
        console, f"SNR of a signed dot product of {head_dim} terms: each effect alone, on a token just written",
        effects if effects.row_count else "no effect: the product is exact",
        f"uniform data, {trials.dies} dies x {trials.columns} products; offset and gain are fitted, so only errors"
        f" count\nlinear cells of {format_quantity(best_line(device), 'A/V')}; readout with its full scale at"
        f" {CLIP:g} rms of the product",
    )  # fmt: skip
    interval = refresh_interval(device)
    followed = interval is None or oldest / interval < MOST_REFRESHES + 1
    section(
        console, "SNR by age of the token [dB]",
        ages_table(device, token_period_s, trials)
        if followed
        else f"left out: a token is refreshed more than {MOST_REFRESHES} times in the window",
        "the readout belongs to the second product; here it reads the first, whose sums are alike",
    )  # fmt: skip
    arrays = linear_table(device)
    section(
        console, "SNR of a product of a ternary layer, 256 inputs: each effect alone",
        arrays if arrays.row_count else "no effect: the product is exact",
        f"normal activations of 8 bits in {_cycles(device)}, weights -1, 0 and 1 alike; the range of the converter is"
        f" that of the least error",
    )  # fmt: skip
    for effect, reason in idle_effects(device, die=True, noise=True, token_period_s=token_period_s).items():
        console.print(f"{effect} does nothing here: {reason}")


def section(console: Console, title: str, body: Table | str, note: str | None = None) -> None:
    """Print a table, or what stands in its place, under a title."""
    console.print(f"\n{title}", style="bold")
    console.print(body)
    if note is not None:
        console.print(note, style="dim")


def head_cost(device: DeviceModel, head_dim: int) -> tuple[float, float]:
    """Return energy [J] and latency [s] of one token of one head whose window is full, on the arrays alone."""
    keys = torch.arange(device.window.tokens)
    layout = slot_layout(keys[None], (keys[-1] - keys)[None, None], device)
    with count_events() as counts:
        record_attention(0, layout, 1, 1, head_dim, 1, device)
    energy = in_scope(price(counts, device).energy_j, ATTENTION)  # range scalers belong to the accelerator
    return energy, attention_timeline(device, device.subtiles).latency_s


def resolution_table(device: DeviceModel) -> Table:
    """Tell the size of one code of each converter."""
    table = _table("", "codes", "one code", "of full scale")
    storage, readout = device.storage, device.readout

    def add(name: str, codes: int | None, share: float | None, full_scale: float, unit: str) -> None:
        if codes is None or share is None:
            table.add_row(name, "continuous", "", "")
        else:
            size = format_quantity(share * full_scale, unit) if full_scale else ""
            table.add_row(name, str(codes), size, _percent(share))

    add("input pulse", device.input.levels, _step(device.input.levels), device.cost.time_qk, "s")
    add("storage", storage.levels, _step(storage.levels), storage.v_max - storage.v_min, "V")
    if storage.levels is not None and (farads := device.write.capacitance) is not None:
        charge = storage_lsb(device) * farads
        table.add_row(
            f"  on {format_quantity(farads, 'F')}",
            "",
            f"{charge * 1e15:.3g} fC = {charge / ELECTRON:.0f} electrons",
            "",
        )
    if (bits := device.readout_qk.bits) is not None:
        signed = device.activation.kind == "softmax"
        codes = 2**bits - 1 if signed else 2**bits
        add("score converter", codes, 2.0 / (codes - 1) if signed else _step(codes), device.saturation.qk, "A")
    if (bits := device.readout_qk.pulse_bits) is not None:
        add("pulse grid", 2**bits, _step(2**bits), device.cost.time_av, "s")
    step = readout_step(readout)
    codes = None if step is None else 2 * highest_code(readout) + 1
    add("readout", codes, step, device.saturation.av, "A")
    if step is not None:
        cells = step * device.saturation.av / full_scale_current(device)
        table.add_row("  in cells at full scale", "", f"{cells:.2g}", "")
    return table


def _step(levels: int | None) -> float | None:
    return None if levels is None else 1.0 / (levels - 1)


def retention_table(device: DeviceModel, token_period_s: float, head_dim: int) -> Table:
    """Tell what time takes, from the median cell and from the worst of the head's arrays."""
    tokens, retention = device.window.tokens, device.retention
    oldest, cells = (tokens - 1) * token_period_s, 2 * head_dim * tokens
    z = -NormalDist().inv_cdf(1.0 / cells)
    headings, deviates = ["median cell"], [0.0]
    if retention.tau_sigma_ln:
        headings.append(f"worst of {cells} ({z:.1f} sigma)")
        deviates.append(-z)
    table = _table("", *headings)
    table.add_row("signal left at the oldest token", *(_percent(swing_left(device, oldest, z)) for z in deviates))
    median = half_lsb_time(device)
    if median is not None:
        times = [median * math.exp(retention.tau_sigma_ln * z) for z in deviates]
        table.add_row("loses half an LSB in", *(format_quantity(time, "s") for time in times))
        name, reference = _CONSTANT[retention.kind], retention.reference_temperature
        at = "" if device.operation.temperature == reference else f" at {reference - 273.15:.0f} degC"
        table.add_row(f"{name} of the cell{at}", *(_slowed(device, time / median) for time in times))
        needed = (_slowed(device, oldest / time) for time in times)
        table.add_row(f"median {name}{at} that loses it at the oldest", *needed)
        table.add_row("refresh by then", *(_refreshes(device, oldest, time, head_dim) for time in times))
    interval = refresh_interval(device)
    own = "none" if interval is None else _refreshes(device, oldest, interval, head_dim)
    every = "" if interval is None else f", every {format_quantity(interval, 's')}"
    table.add_row(f"refresh of the device{every}", own, *[""] * (len(headings) - 1))
    return table


def storage_lsb(device: DeviceModel) -> float:
    """Return the distance of two storage levels [V]."""
    storage = device.storage
    assert storage.levels is not None
    return (storage.v_max - storage.v_min) / (storage.levels - 1)


def swing_left(device: DeviceModel, age_s: float, z: float) -> float:
    """Return the share [1] of the distance between highest and lowest voltage that is left at an age.

    Args:
        device: The device.
        age_s: [s].
        z: [1] deviate of the cell's ln(time constant); negative is fast.
    """
    ends = np.array([device.storage.v_min, device.storage.v_max])
    low, high = stored_voltage(ends, age_s, device.retention, temperature=device.operation.temperature, z=z)
    return float((high - low) / (ends[1] - ends[0]))


def half_lsb_time(device: DeviceModel) -> float | None:
    """Return the time [s] in which the extreme level of the median cell moves by half an LSB; None if it never does."""
    if device.storage.levels is None:
        return None
    try:
        return refresh_interval(replace(device, refresh=Refresh("on_droop", droop=0.5)))
    except ValueError:
        return None


def _slowed(device: DeviceModel, factor: float) -> str:
    """Return the constant of the law that makes the median cell slower by a factor, at the reference temperature."""
    name = _CONSTANT[device.retention.kind]
    own = getattr(device.retention, name)
    return format_quantity(own / factor, "V/s") if name == "rate" else format_quantity(own * factor, "s")


def _refreshes(device: DeviceModel, oldest: float, interval: float, head_dim: int) -> str:
    """Tell how often a token is refreshed in the window, and what that costs per token."""
    often = math.floor(oldest / interval)
    energy = often * 2 * head_dim * device.cost.refresh_conversion
    return f"{often} x, {format_quantity(energy, 'J') if energy else 'no price'} per token" if often else "not needed"


def effects_table(device: DeviceModel, trials: Trials) -> Table:
    """Measure each effect alone."""
    table = _table("", "dB", "drawn per", "set by", left=2)
    for row in snr_by_effect(device, trials):
        drawn = ", ".join(when for when in row.drawn if when != "design")
        setting = ", ".join(f"{key} {device.provenance[key].text}" for key in row.keys)
        table.add_row(row.effect, _decibel(row.snr_db), drawn, setting)
    return table


def linear_table(device: DeviceModel) -> Table:
    """Measure each effect of the arrays of the ternary layers alone."""
    table = _table("", "dB", "drawn per", "set by", left=2)
    for row in linear_snr_by_effect(device, LinearTrials()):
        drawn = ", ".join(when for when in row.drawn if when != "design")
        keys = () if row.effect == TOGETHER else dict.fromkeys(key for key in row.keys if key in device.provenance)
        setting = ", ".join(f"{key} {device.provenance[key].text}" for key in keys)
        table.add_row(row.effect, _decibel(row.snr_db), drawn, setting)
    return table


def _cycles(device: DeviceModel) -> str:
    """Tell how an input reaches the rows of an array."""
    array = device.linear
    bits = "bit" if array.digit_bits == 1 else "bits"
    cycles = "one cycle" if array.input_cycles == 1 else f"{array.input_cycles} cycles"
    return f"{cycles} of {array.digit_bits} {bits}"


def ages_table(device: DeviceModel, token_period_s: float, trials: Trials) -> Table:
    """Measure retention and everything together by age."""
    headings = ["just written", "oldest", "all ages, one gain"] if device.decays else ["any age"]
    table = _table("", *headings)
    for row in snr_by_age(device, token_period_s, trials):
        table.add_row(row.effects, *(_decibel(value) for value in row.snr_db))
    return table


def explain_clips(console: Console, device: DeviceModel, token_period_s: float, model: str | None) -> None:
    """Run 16 made-up notes through a model and print what share of its values each converter clips.

    Args:
        console: Where to.
        device: The device.
        token_period_s: [s] time between two tokens.
        model: Folder of a model; None is the shipped one.

    Raises:
        InputError: If the model cannot be loaded.
    """
    from fllm.config import DEFAULT_FIELDS
    from fllm.data import build_note, load_synthetic
    from fllm.model.base import load_model

    notes = [build_note(case, DEFAULT_FIELDS) for case in load_synthetic(40, n_hospitals=4, seed=1).cases[:16]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*: no effect of ")  # told in lines of their own
        loaded = load_model(model, device, token_period_s, notes)
    context = getattr(loaded.model.config, "max_position_embeddings", None) or device.window.tokens
    longest = min(context, device.window.tokens)
    encoded = [loaded.tokenizer(note, return_tensors="pt").input_ids[:, :longest] for note in notes]
    rates = clip_rates(loaded.model, encoded)
    title = f"Values outside of the converters' ranges: {loaded.name}, {len(notes)} made-up notes"
    section(
        console, title, clips_table(rates),
        "range scalers set from statistics, as the folder has none" if loaded.calibrated else None,
    )  # fmt: skip


def clips_table(rates: Sequence[LayerClipping]) -> Table:
    """Tell what share of a model's values each converter clips."""
    table = _table("layer", "queries", "keys", "values", "scores < 0", "scores > saturation", "readouts at an end")
    for row in rates:
        shares = (row.query, row.key, row.value, row.score_below, row.score_above, row.readout)
        table.add_row(str(row.layer), *("-" if share is None else f"{100 * share:.1f} %" for share in shares))
    return table


def _table(*headings: str, left: int = 0) -> Table:
    """Return a table whose first column and last ``left`` columns are text, the others figures."""
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in table.columns[1 : len(headings) - left]:
        column.justify = "right"
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share >= 1e-4 or share == 0.0 else "< 0.01 %"


def _decibel(value: float) -> str:
    if value == math.inf:
        return "exact"
    return f"{value:.1f}" if value >= _LOWEST_DB else f"< {_LOWEST_DB:g}"
