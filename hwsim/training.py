"""What training costs beside the forward passes on the arrays: backward pass and optimiser on the accelerator.

Its work follows from the counts of the forward passes; nothing of it runs on the arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter

from device_models.costs import ACCELERATOR, HALF_PRECISION, VECTOR_OPS, logic_factor
from device_models.machines import Network
from device_models.schema import DeviceModel
from hwsim.costing import EnergyTerm
from hwsim.events import EventCounts

NETWORK = "network"
"""The third place where training spends energy, beside arrays and digital accelerator."""
BACKWARD_PARTS = ("backward pass", "saved activations", "optimiser", "weights of the backward pass")
"""Parts of what training adds to the accelerator's line, in the order of reports."""
OPTIMISERS = {"adamw": (14, 7 * 32), "sgd": (2, 3 * 32)}
"""Element operations and moved bits of an optimiser per weight and step, in float32.

AdamW: two moments (3 + 4), bias corrections (2), root, quotient, decay, step (2); gradient, weight and moments read,
weight and moments written. SGD without momentum: a product and a sum; gradient and weight read, weight written.
"""
TERNARY_BITS = 2
"""[bit] of one ternary weight in memory."""
EIGHT_BITS = 8


@dataclass(frozen=True)
class TrainingEvents:
    """Work of the accelerator in training, beyond the forward passes.

    Attributes:
        macs: Multiply-accumulates of the backward pass.
        operations: Element operations of the backward pass.
        saved_bits: Bits of activations written in the forward and read in the backward pass.
        weight_bits: Bits of frozen weights read.
        frozen_weights: Ternary weights that gradients pass.
        optimiser_operations: Element operations of the optimiser.
        optimiser_bits: Bits of gradients, moments and weights moved.
    """

    macs: int
    operations: int
    saved_bits: int
    weight_bits: int
    frozen_weights: int
    optimiser_operations: float
    optimiser_bits: float


def training_events(
    forward: EventCounts, device: DeviceModel, *, steps: int, trained_parameters: float, frozen_weights: int,
    optimiser: str = "adamw",
) -> TrainingEvents:  # fmt: skip
    """Derive the backward pass and the optimiser of LoRA fine-tuning from the counts of its forward passes.

    ::

        macs   = linear macs (gradient of inputs; ternary weights are frozen)
               + 2 (QK + AV) (gradients of q, k, phi, v) + QK (scores again: pulses between the products are not kept)
               + 2 adapter macs (gradients of inputs and factors) + LM head macs
        operations = 2 x those of the forward pass + 2 per score (gates of the hard sigmoid)
        saved  = 2 x (8 bit per input of a linear layer + 16 bit per value of a scaler)

    Args:
        forward: Counts of the forward passes of training.
        device: The device that they ran on.
        steps: Optimiser steps; frozen weights are read once in each.
        trained_parameters: Weights of the adapter; a mean where steps are those of adapters of several sizes.
        frozen_weights: Ternary weights that gradients pass.
        optimiser: One of ``OPTIMISERS``.

    Source: chain rule of the model. Approximation: gradients of the first layer's inputs are counted although nothing
    below it is trained; loss and sampling are left out.
    """
    events = forward.events
    optimiser_operations, optimiser_bits = OPTIMISERS[optimiser]
    linear = events["linear.cell_mac"] // device.linear.input_cycles
    qk, av = events["attention.qk_mac"] // device.reads_per_score, events["attention.av_mac"]
    vector = sum(operations * events[event] for event, operations in VECTOR_OPS.items())
    saved = EIGHT_BITS * events["linear.input_value"] + HALF_PRECISION * events["attention.scaler_value"]
    return TrainingEvents(
        macs=linear + 3 * qk + 2 * av + 2 * events["digital.adapter_mac"] + events["digital.mac"],
        operations=2 * vector + 2 * (events["attention.phi_conversion"] // device.reads_per_score),
        saved_bits=2 * saved,
        weight_bits=steps * (TERNARY_BITS * frozen_weights + sum(forward.weight_bits.values())),
        frozen_weights=frozen_weights,
        optimiser_operations=optimiser_operations * steps * trained_parameters,
        optimiser_bits=optimiser_bits * steps * trained_parameters,
    )


def training_terms(events: TrainingEvents, forward: EventCounts, device: DeviceModel) -> list[EnergyTerm]:
    """Price the backward pass and the optimiser on the device's digital side, by ``BACKWARD_PARTS``.

    Activations and optimiser state move to and from DRAM; weights come from the memory that keeps them.
    """
    backward, saved, optimiser, weights = BACKWARD_PARTS
    system, dram, logic = "digital.system_multiplier", "digital.dram_bit", logic_factor(device)
    on_chip = _fits(events, forward, device)
    work: list[tuple[str, float, tuple[str, ...]]] = [
        (backward, logic * events.macs, ("digital.mac", system)),
        (backward, logic * events.operations, ("digital.vector_op", system)),
        (saved, events.saved_bits, (dram,)),
        (optimiser, logic * events.optimiser_operations, ("digital.vector_op", system)),
        (optimiser, events.optimiser_bits, (dram,)),
        (weights, (logic if on_chip else 1.0) * events.weight_bits, ("digital.sram_bit" if on_chip else dram,)),
    ]
    return [
        EnergyTerm(part, ACCELERATOR, number * math.prod(attrgetter(key)(device) for key in keys), keys)
        for part, number, keys in work
    ]


def _fits(events: TrainingEvents, forward: EventCounts, device: DeviceModel) -> bool:
    """Say whether the memory on the chip holds the digital weights and the ternary ones that gradients pass."""
    kept = sum(forward.weight_bits.values()) + TERNARY_BITS * events.frozen_weights
    return kept <= 8 * device.digital.sram_bytes


def network_terms(network: Network, *, uplink_bytes: int, downlink_bytes: int) -> list[EnergyTerm]:
    """Price what travels between clients and server at the clients' interfaces."""
    return [
        EnergyTerm("uplink", NETWORK, 8 * uplink_bytes * network.uplink_bit, ("network.uplink_bit",)),
        EnergyTerm("downlink", NETWORK, 8 * downlink_bytes * network.downlink_bit, ("network.downlink_bit",)),
    ]


def training_time(events: TrainingEvents, forward: EventCounts, device: DeviceModel) -> float:
    """Return the time [s] of backward pass and optimiser: the slower of arithmetic and memory."""
    digital = device.digital
    arithmetic = events.macs / digital.mac_rate
    arithmetic += (events.operations + events.optimiser_operations) / digital.vector_rate
    moved = events.saved_bits + events.optimiser_bits
    moved += 0 if _fits(events, forward, device) else events.weight_bits
    return max(arithmetic, moved / digital.dram_rate)
