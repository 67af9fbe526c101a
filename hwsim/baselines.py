"""The same workload on other hardware: each with what it is based on, what it leaves out, and what it may be held to.

Three kinds of numbers that do not compare without a word: circuits at 28 nm (arithmetic and memory), boards at full
memory bandwidth (everything the board draws), and published measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from device_models import load_device
from device_models.costs import HALF_PRECISION, event_costs
from device_models.limits import output_limit, storage_limit
from device_models.machines import Baselines, Machine, PublishedAttention, load_baselines
from device_models.schema import DeviceModel
from hwsim.events import EventCounts

ATTENTION, LINEAR, WHOLE = "attention", "linear layers", "whole forward pass"
SCOPES: Mapping[str, tuple[str, ...]] = {
    ATTENTION: ("attention arrays", "attention converters", "writes", "refresh", "digital control"),
    LINEAR: ("linear arrays", "linear converters"),
}
"""Parts of a device's energy that stand against a baseline of a scope; ``WHOLE`` takes all of them."""
LEAKAGE: Mapping[str, str] = {ATTENTION: "leakage of attention arrays", LINEAR: "leakage of linear arrays"}
"""What leaks over the token period beside a scope; the baselines of these scopes leave out theirs."""
OUTPUT_BITS, STORAGE_BITS = 5.0, 3.0
"""Resolution of the published head: outputs and stored values, for the thermal limit."""
EIGHT_BITS = 8
DIGITAL_CIM = "sram_dcim_28nm"


@dataclass(frozen=True)
class Baseline:
    """One row of a comparison.

    Attributes:
        name: For people.
        scope: What it computes: attention, linear layers, or the whole forward pass.
        energy_j: [J] for all tokens counted.
        latency_s: [s] per token; None where the basis says nothing about it.
        kind: Kind of number that it rests on.
        sources: Keys of its numbers or of its devices.
        caveat: What a reader must know before dividing by it.
        design: Whether somebody could build it; else it is a bound.
    """

    name: str
    scope: str
    energy_j: float
    latency_s: float | None
    kind: str
    sources: tuple[str, ...]
    caveat: str
    design: bool = True


@dataclass(frozen=True)
class Work:
    """What a workload asks for, whatever computes it.

    Attributes:
        tokens: Tokens.
        attention_macs: Multiply-accumulates of each of the two products.
        scores: Pairs of query and key, all heads.
        values_read: Keys and values that a processor reads from its cache: shared heads once.
        values_written: Keys and values.
        outputs: Dot products with a conversion: scores and outputs of sub-tiles.
        linear_macs: Multiply-accumulates of ternary layers.
        digital_macs: Multiply-accumulates of LM head, adapter and other digital layers.
    """

    tokens: int
    attention_macs: int
    scores: int
    values_read: float
    values_written: int
    outputs: int
    linear_macs: int
    digital_macs: int


@cache
def digital_cim() -> DeviceModel:
    """Return the device whose prices stand for digital compute-in-memory."""
    return load_device(DIGITAL_CIM)


def work(counts: EventCounts, device: DeviceModel) -> Work:
    """Take from counts on one device what does not depend on it."""
    events = counts.events
    shared = 1.0 + (events["attention.shared_array_pass"] / (events["attention.layer_pass"] or 1))
    return Work(
        tokens=counts.tokens,
        attention_macs=events["attention.av_mac"],
        scores=events["attention.phi_conversion"] // device.reads_per_score,
        values_read=2 * events["attention.av_mac"] / shared,
        values_written=events["attention.write_conversion"],
        outputs=events["attention.phi_conversion"] // device.reads_per_score + events["attention.av_conversion"],
        linear_macs=events["linear.cell_mac"] // device.linear.input_cycles,
        digital_macs=events["digital.mac"] + events["digital.adapter_mac"],
    )


def baselines(counts: EventCounts, device: DeviceModel) -> list[Baseline]:
    """Price the workload behind counts on every baseline that computes a part of it.

    Args:
        counts: Events on the device.
        device: The device, whose geometry the counts have.
    """
    asked, known = work(counts, device), load_baselines()
    rows = [make(asked, known) for make in _ATTENTION] if asked.attention_macs else []
    rows += [make(asked, known) for make in _LINEAR] if asked.linear_macs else []
    rows += [make(asked, known) for make in _WHOLE] if asked.attention_macs and asked.linear_macs else []
    return [*rows, _thermal_limit(asked, device)] if asked.attention_macs else rows


Maker = Callable[[Work, Baselines], Baseline]


def _digital_cim(asked: Work, known: Baselines) -> Baseline:  # noqa: ARG001
    """Products of a published INT8 macro at its peak, softmax and writes beside them."""
    other = digital_cim()
    prices = {event: cost.energy_j for event, cost in event_costs(other).items()}
    energy = asked.attention_macs * (prices["attention.qk_mac"] + prices["attention.av_mac"])
    energy += asked.scores * prices["attention.softmax"]
    energy += asked.values_written * prices["attention.write_conversion"]
    return Baseline(
        "28 nm digital compute-in-memory, INT8", ATTENTION, energy, None, "measured", (DIGITAL_CIM,),
        "peak efficiency of a measured macro with favourable data, without routing and control; the softmax is an "
        "assumption; the analog figure is simulated and contains its control",
    )  # fmt: skip


def _sram_window(asked: Work, known: Baselines) -> Baseline:
    """Read keys and values of the window from SRAM for each query, multiply in INT8."""
    bank = known.sram_window
    energy = asked.values_read * EIGHT_BITS * bank.kv_bit + 2 * asked.attention_macs * bank.mac
    energy += asked.scores * bank.softmax + asked.values_written * EIGHT_BITS * bank.kv_bit
    return Baseline(
        "28 nm digital, window in 8 KB SRAM banks", ATTENTION, energy, None, "derived",
        ("sram_window.kv_bit", "sram_window.mac", "sram_window.softmax"),
        "circuit estimates scaled from 45 nm; without wires between banks, registers and control",
    )  # fmt: skip


def _published(field: str, name: str) -> Maker:
    def make(asked: Work, known: Baselines) -> Baseline:
        found: PublishedAttention = getattr(known, field)
        # One published token: 12 heads x 1024 keys x 64 dimensions
        share = asked.attention_macs / (found.HEADS * found.WINDOW * found.HEAD_DIM)
        return Baseline(
            f"{name}, as published, unoptimised", ATTENTION, share * found.energy,
            share * found.latency / (asked.tokens or 1), (known.provenance or {})[f"{field}.energy"].kind,
            (f"{field}.energy", f"{field}.latency"),
            "fp32, no tuned kernel, idle power subtracted; energy and time of a step of 64 sequences divided by 64, so "
            "the time is throughput; scaled by multiply-accumulates from 12 heads of 64 dimensions and 1024 tokens",
        )  # fmt: skip

    return make


def _streamed(field: str, name: str, scope: str) -> Maker:
    """Move everything that a token needs once, at full bandwidth and board power; one sequence shares nothing."""

    def make(asked: Work, known: Baselines) -> Baseline:
        machine: Machine = getattr(known, field)
        moved = asked.values_read + asked.values_written
        caveat = (
            "keys and values read once per token; the board's power holds all that a system needs, the analog figure "
            "does not"
        )
        if scope == WHOLE:
            moved += asked.linear_macs + asked.digital_macs
            caveat = (
                "weights and window read once per token by one sequence; a batch shares the weights, so a served model "
                "pays a fraction of it"
            )
        bits = HALF_PRECISION * moved
        return Baseline(
            f"{name}, fp16, bandwidth-bound, batch 1", scope, bits * machine.power / machine.bandwidth,
            bits / machine.bandwidth / (asked.tokens or 1), "derived", (f"{field}.power", f"{field}.bandwidth"), caveat,
        )  # fmt: skip

    return make


def _compute_bound(asked: Work, known: Baselines) -> Baseline:
    """Every multiply-accumulate at peak arithmetic and board power: a batch so large that memory does not matter."""
    machine = known.h100
    assert machine.arithmetic is not None
    operations = 2 * (2 * asked.attention_macs + asked.linear_macs + asked.digital_macs)
    return Baseline(
        "H100, fp16, compute-bound, large batch", WHOLE, operations * machine.power / machine.arithmetic,
        None, "derived", ("h100.power", "h100.arithmetic"),
        "peak arithmetic at board power: many sequences, or a long known text, share every read of a weight; the other "
        "end of what such a board spends",
    )  # fmt: skip


def _cpu(field: str, name: str) -> Maker:
    def make(asked: Work, known: Baselines) -> Baseline:
        return Baseline(
            f"bitnet.cpp on {name}", LINEAR, asked.linear_macs * getattr(known, field).weight, None, "derived",
            (f"{field}.weight",),
            "energy per token of a 7B model over its weights, attention and all else included; smaller models need "
            "more per weight",
        )  # fmt: skip

    return make


def _linear_digital_cim(asked: Work, known: Baselines) -> Baseline:  # noqa: ARG001
    other = digital_cim()
    mac = event_costs(other)["linear.cell_mac"].energy_j * other.linear.input_cycles
    return Baseline(
        "28 nm digital compute-in-memory, INT8", LINEAR, asked.linear_macs * mac, None, "derived", (DIGITAL_CIM,),
        "peak efficiency of a measured INT8 macro times the same system factor as the ternary arrays",
    )  # fmt: skip


def _thermal_limit(asked: Work, device: DeviceModel) -> Baseline:
    """``24 kT 4^B`` per output and ``12 kT 4^b`` per stored value."""
    t = device.operation.temperature
    energy = asked.outputs * output_limit(OUTPUT_BITS, t) + asked.values_written * storage_limit(STORAGE_BITS, t)
    return Baseline(
        "thermal-noise limit, ideal circuits", ATTENTION, energy, None, "derived", ("24 kT 4^5, 12 kT 4^3",),
        "no design: kT/C noise at 5-bit outputs and 3-bit storage", design=False,
    )  # fmt: skip


def _converter_floor(asked: Work, known: Baselines) -> Baseline:
    """Every score and output through one of the best published converters, and nothing else."""
    return Baseline(
        "conversions alone, best published converters", ATTENTION, asked.outputs * known.survey_floor.conversion, None,
        "derived", ("survey_floor.conversion",),
        "a practical floor, no design: converters of the survey's envelope, mostly fast stand-alone parts; the "
        "published head has none, as its charge-to-pulse stages stand in their place", design=False,
    )  # fmt: skip


_ATTENTION: tuple[Maker, ...] = (
    _digital_cim,
    _sram_window,
    _streamed("h100", "H100", ATTENTION),
    _streamed("jetson_orin", "Jetson AGX Orin", ATTENTION),
    _published("published_h100", "H100"),
    _published("published_rtx4090", "RTX 4090"),
    _published("published_jetson_nano", "Jetson Nano"),
    _converter_floor,
)
_LINEAR: tuple[Maker, ...] = (
    _linear_digital_cim,
    _cpu("bitnet_cpp_m2_ultra", "Apple M2 Ultra"),
    _cpu("bitnet_cpp_i7_13700h", "Intel i7-13700H"),
)
_WHOLE: tuple[Maker, ...] = (
    _streamed("h100", "H100", WHOLE),
    _compute_bound,
    _streamed("jetson_orin", "Jetson AGX Orin", WHOLE),
)


def in_scope(parts: Mapping[str, float], scope: str) -> float:
    """Return the device's energy [J] that stands against a baseline of this scope."""
    return sum(energy for part, energy in parts.items() if scope == WHOLE or part in SCOPES[scope])
