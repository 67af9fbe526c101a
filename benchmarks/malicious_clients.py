"""What two malicious clients of ten do to a federation, by strategy.

Run: ``python benchmarks/malicious_clients.py [--out FILE]``. Ten clients, through the product's own rounds, once for
each strategy and attack: two train like the others and send their change of the adapter multiplied by a factor.
Prints the accuracy after the last round, on the device and on the ideal one, as lines of a table; last that of
hospitals whose mixes of diagnoses differ much, without an attack. A quarter of an hour on a core of its own; with
``--rounds 6 --steps 20 --batch 8`` they train as in the default run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fllm.config import RunConfig
from fllm.federation.client_app import Trainer, make_client_app
from fllm.federation.engines import InProcessGrid
from fllm.federation.server_app import Round, RoundFailed, Start, Terms, federate
from fllm.federation.task import Hospital, Update
from fllm.model.adapters import adapter_digest, get_adapter, set_adapter
from fllm.observer import Observer
from fllm.outcome import evaluate_everywhere
from fllm.preparation import Prepared, prepare
from fllm.sections import StrategySettings

CLIENTS, MALICIOUS = 10, (3, 7)
STRATEGIES = {
    "FedAvg": StrategySettings(),
    "trimmed mean, 0.2": StrategySettings(kind="trimmed_mean", trim=0.2),
    "Krum, 2": StrategySettings(kind="krum", malicious=2),
    "MultiKrum, 2": StrategySettings(kind="multikrum", malicious=2),
    "median": StrategySettings(kind="fedmedian"),
}
ATTACKS = {"none": 1.0, "x 10": 10.0, "x -5": -5.0, "x 100": 100.0}
"""What a malicious client multiplies its change of the adapter by."""
ALIKE, UNLIKE = 10.0, 0.5
"""``label_concentration`` of the hospitals: the default run's, and one where most have two or three diagnoses."""


@dataclass(frozen=True)
class Malicious:
    """A client that trains, and sends a multiple of its change of the adapter."""

    honest: Trainer
    factor: float

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        """Train one round, and put a multiple of what changed into the update."""
        made = self.honest.train(adapter, server_round, proximal_mu=proximal_mu)
        sent = {name: start + self.factor * (made.adapter[name] - start) for name, start in adapter.items()}
        return Update(sent, made.loss, made.examples, made.counts)


class Remembering:
    """A client that trains once from each adapter and round: all strategies share their first round."""

    def __init__(self, hospital: Hospital, made: dict[tuple[str, int, int], Update]) -> None:
        self._hospital, self._made = hospital, made

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        """Train one round, or return what came of it before: it follows from adapter, round and client alone."""
        key = (adapter_digest(adapter), server_round, self._hospital.partition)
        if key not in self._made:
            self._made[key] = self._hospital.train(adapter, server_round, proximal_mu=proximal_mu)
        return self._made[key]


def main() -> None:
    """Train all of them in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="local steps of each client in a round")
    parser.add_argument("--batch", type=int, default=4, help="cases per step")
    parser.add_argument("--cases", type=int, default=1120)
    parser.add_argument("--test", type=float, default=0.286, help="share of the cases that is tested on")
    parser.add_argument("--out", type=Path, help="file that the lines are added to as well")
    given = parser.parse_args()
    for concentration, attacks in ((ALIKE, ATTACKS), (UNLIKE, {"none": 1.0})):
        config = RunConfig(
            num_clients=CLIENTS, num_cases=given.cases, test_fraction=given.test, num_rounds=given.rounds,
            local_steps=given.steps, batch_size=given.batch, label_concentration=concentration, threads=1,
            lora_baselines=(),
        )  # fmt: skip
        prepared = prepare(config, Observer())
        made: dict[tuple[str, int, int], Update] = {}
        scored: dict[str, str] = {}
        clients = [Remembering(hospital, made) for hospital in prepared.hospitals]
        majority = prepared.record["baselines"]["majority"]["accuracy"]
        _say(f"concentration {concentration:g}: majority class {majority:.3f}", given.out)
        for attack, factor in attacks.items():
            for name, strategy in STRATEGIES.items():
                began = time.perf_counter()
                found = _trained(prepared, strategy, _with_malicious(clients, factor), scored)
                line = f"| {concentration:g} | {attack} | {name} | {found} | {time.perf_counter() - began:.0f} s |"
                _say(line, given.out)


def _with_malicious(clients: list[Remembering], factor: float) -> Callable[[int], Trainer]:
    """Return the client of each partition, two of which are malicious unless the factor is 1."""
    bad = MALICIOUS if factor != 1.0 else ()
    return lambda partition: Malicious(clients[partition], factor) if partition in bad else clients[partition]


def _say(line: str, out: Path | None) -> None:
    print(line, flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _trained(
    prepared: Prepared, strategy: StrategySettings, trainer_of: Callable[[int], Trainer], scored: dict[str, str]
) -> str:
    """Run all rounds from the first adapter; returns cells: accuracy on the device and the ideal one, who stood out."""
    config, rounds = prepared.config, list[Round]()
    set_adapter(prepared.model, prepared.first_adapter)
    start = Start(get_adapter(prepared.model))
    terms = Terms(strategy, config.num_clients, config.num_rounds, config.seed)
    try:
        federate(InProcessGrid(make_client_app(trainer_of), config.num_clients), terms, start, rounds.append)
    except RoundFailed as error:
        return f"{error} | - | -"
    digest = adapter_digest(rounds[-1].adapter)
    if digest not in scored:
        set_adapter(prepared.model, rounds[-1].adapter)
        scores = evaluate_everywhere(prepared)
        scored[digest] = f"{scores.dies[0].accuracy:.3f} | {scores.ideal.accuracy:.3f}"
    noticed = sorted({one.partition for round_ in rounds for one in round_.participants if one.outlier})
    return f"{scored[digest]} | {noticed}"


if __name__ == "__main__":
    main()
