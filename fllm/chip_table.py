"""One model on every chip that matters to a federation: the clients' own, others that nobody trained on, and none.

The model is scored on all test cases everywhere, so that chips differ by themselves and not by their clients' cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fllm.evaluation.chips import ChipScores, chip_facts, difference_facts, gain_facts
from fllm.model.adapters import set_adapter, whole_adapter
from fllm.outcome import Evaluation
from fllm.preparation import Prepared, evaluation_die
from fllm.record import smallest_cell

UNSEEN = 3
"""Least number of chips that no client has; a run with more dies has those."""
OTHERS = 3
"""Other clients' chips that the model of one client is scored on, the next ones in turn."""

OnStage = Callable[[str], None]


def score_on_chips(
    prepared: Prepared, scores: Evaluation, on_stage: OnStage, *, clients: Sequence[int] | None = None,
    unseen: int = UNSEEN,
) -> ChipScores:  # fmt: skip
    """Score the model's adapter on chips.

    Args:
        prepared: The run; its model has the adapter.
        scores: The adapter on the ideal device and on the dies of the run, which need not be scored again.
        on_stage: Is told what goes on.
        clients: Clients whose chips are meant; None is all. Where clients have no chip for long, there is none.
        unseen: Chips of no client.
    """
    config, chips, adapter = prepared.config, prepared.chips, whole_adapter(prepared.model)
    wanted = range(config.num_clients) if clients is None else clients
    own = {}
    for number, client in enumerate(wanted if chips.own else (), start=1):
        on_stage(f"evaluating on clients' chips, {number} of {len(wanted)}")
        bench = chips.bench(client)
        set_adapter(bench.model, adapter)
        period_s = bench.loaded.placing.token_period_s
        own[client] = bench.score(prepared.held_out, chips.device(client), chips.die(client, 0), period_s)
    others = list(scores.dies)
    for number in range(len(others), unseen):
        on_stage(f"evaluating on unseen chips, {number + 1} of {unseen}")
        die = evaluation_die(config, prepared.device, number)
        others.append(prepared.bench.score(prepared.held_out, prepared.device, die, prepared.period_s))
    return ChipScores(scores.ideal, own, others)


def table_of_chips(found: ChipScores, prepared: Prepared) -> dict[str, Any]:
    """Describe the last model chip by chip, for ``result.json``."""
    config, corpus = prepared.config, prepared.cases.corpus
    least = smallest_cell(corpus)
    facts = chip_facts(found, prepared.client_of_test, seed=config.seed, smallest_cell=least)
    facts["clients"] = [row | _chip_of(row["client"], prepared) for row in facts["clients"]]
    facts["unseen"]["chips"] = [
        one | {"device": prepared.device.name, "die_seed": evaluation_die(config, prepared.device, number).seed}
        for number, one in enumerate(facts["unseen"]["chips"])
    ]
    return facts | {"training_chips": config.training_chips}


def _chip_of(client: int, prepared: Prepared) -> dict[str, Any]:
    die = prepared.chips.die(client, 0)
    return {
        "name": prepared.cases.clients[client].name,
        "device": prepared.chips.device(client).name,
        "die_seed": None if die is None else die.seed,
    }


def others_of(client: int, prepared: Prepared) -> list[int]:
    """Return the clients whose chips the model of one client is scored on beside its own."""
    clients = prepared.config.num_clients
    return [(client + step) % clients for step in range(1, min(OTHERS, clients - 1) + 1)]


def one_chip_facts(federated: ChipScores, other: ChipScores, prepared: Prepared, trained_on: int) -> dict[str, Any]:
    """Compare the federation with one whose clients all trained on one client's chip.

    Args:
        federated: The federation's model.
        other: The other's.
        prepared: The run.
        trained_on: Client whose chip that is.
    """
    seed = prepared.config.seed
    rest = [client for client in federated.own if client != trained_on]
    own, others = other.on([trained_on]), other.on(rest)
    return {
        "client": trained_on,
        **_chip_of(trained_on, prepared),
        "trained_on": gain_facts(federated.on([trained_on]), own, seed=seed),
        "others": gain_facts(federated.on(rest), others, seed=seed),
        "unseen": gain_facts(federated.unseen, other.unseen, seed=seed),
        "own_minus_others": difference_facts(own, others, seed=seed),
    }


def local_facts(federated: ChipScores, alone: Sequence[ChipScores], prepared: Prepared) -> dict[str, Any]:
    """Compare the federation with the models that clients trained alone, each on its own chip and on others'.

    Args:
        federated: The federation's model.
        alone: Each client's model, on its own chip and on those of :func:`others_of`.
        prepared: The run.
    """
    seed = prepared.config.seed
    own = [model.own[client] for client, model in enumerate(alone)]
    elsewhere = [model.on(others_of(client, prepared)) for client, model in enumerate(alone)]
    same = [scores for client in range(len(alone)) for scores in federated.on(others_of(client, prepared))]
    flat = [scores for each in elsewhere for scores in each]
    return {
        "trained_on": gain_facts(federated.on(range(len(alone))), own, seed=seed),
        "others": gain_facts(same, flat, seed=seed),
        "own_minus_others": difference_facts(own, flat, seed=seed),
        "clients": [
            {"client": client, "own": mine.accuracy, "others": [one.accuracy for one in each]}
            for client, (mine, each) in enumerate(zip(own, elsewhere, strict=True))
        ],
    }
