"""The federation once more with every client on one client's chip, to tell what training across chips gives.

Clients, cases, batches, steps, noise, averages and what is private are those of the run; the chip alone differs. So a
difference between both models is that of the chips, and not that of federated and pooled training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from fllm.federation.engines import InProcessGrid
from fllm.federation.privacy_client import BudgetSpent
from fllm.federation.server_app import Round, Start, federate
from fllm.federation.task import Hospital
from fllm.local_clients import client_app_of, terms_of
from fllm.model.adapters import frozen_adapter, set_adapter
from fllm.preparation import Prepared, make_hospital, privacy_of

CLIENT = 0
"""Client whose chip all train on."""


def train_on_one_chip(prepared: Prepared, on_stage: Callable[[str], None]) -> Mapping[str, Tensor]:
    """Run all rounds of a run on one chip, in this process.

    Args:
        prepared: The run, whose clients have chips of their own; its model is used.
        on_stage: Is told what goes on.

    Returns:
        The last adapter.
    """
    config, rounds = prepared.config, prepared.config.num_rounds
    terms = replace(terms_of(config), privacy=privacy_of(config, prepared.sizes))
    set_adapter(prepared.model, prepared.first_adapter)
    last = dict(prepared.first_adapter)

    def keep(outcome: Round) -> None:
        last.update(outcome.adapter)
        if outcome.number < rounds:
            on_stage(f"training, {outcome.number + 1} of {rounds}")

    on_stage(f"training, 1 of {rounds}")
    with TemporaryDirectory() as folder:
        app = client_app_of(config, Path(folder), _moved(prepared).__getitem__, lambda: prepared.first_adapter)
        start = Start(prepared.first_adapter, frozen=frozen_adapter(prepared.model))
        try:
            federate(InProcessGrid(app, config.num_clients), terms, start, keep)
        except BudgetSpent:
            on_stage("the budget of privacy is spent, as it was in the run")
    return last


def _moved(prepared: Prepared) -> list[Hospital]:
    """Return the clients of the run, each with its own cases, all on one client's device and chip."""
    chips = prepared.chips
    bench, device = chips.bench(CLIENT), chips.device(CLIENT)
    return [
        make_hospital(
            one.partition, list(one.prompts), bench, device, one.training, lambda _, number: chips.die(CLIENT, number)
        )
        for one in prepared.hospitals
    ]
