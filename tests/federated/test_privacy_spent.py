"""Privacy of clients: noise and clipping of the server, what is spent, and when no more is spent."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import dp_event, pld, rdp
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from opacus.accountants import RDPAccountant

from device_models import InputError
from fllm.config import validate_config
from fllm.federation.privacy import PrivacyTerms, RecordLedger, check_extra, epsilon_of
from fllm.federation.privacy_client import BudgetSpent, ClientPrivacy
from fllm.federation.privacy_noise import NoiseSource
from fllm.sections import PrivacySettings

Adapter = dict[str, NDArray[np.float32]]
START: Adapter = {"z": np.ones((3, 2), np.float32), "a": np.zeros(40_000, np.float32)}
NO_NOISE = 1e-7


class Nodes:
    """What a strategy sees of a grid."""

    def __init__(self, clients: int) -> None:
        self.clients = clients

    def get_node_ids(self) -> list[int]:
        return list(range(1, self.clients + 1))


def made(clients: int = 4, seed: int | None = 3, **settings: Any) -> ClientPrivacy:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Message() reads them
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    return ClientPrivacy(
        strategy, PrivacySettings(kind="client", **settings), asked=clients, clients=clients,
        source=NoiseSource(seed),
    )  # fmt: skip


def ledger_of_cases(*sizes: int, batch: int = 8, steps: int = 20, **settings: Any) -> RecordLedger:
    privacy = PrivacySettings(kind="record", **settings)
    return RecordLedger(PrivacyTerms(privacy, len(sizes), len(sizes), sizes, batch, steps))


def asked(privacy: ClientPrivacy, number: int, start: Adapter = START) -> list[Message]:
    grid: Any = Nodes(privacy.num_sampled_clients)
    arrays = ArrayRecord({name: Array(value) for name, value in start.items()})
    return list(privacy.configure_train(number, arrays, ConfigRecord(), grid))


def answer(message: Message, update: Mapping[str, NDArray[np.float32]], examples: int) -> Message:
    arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in update.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": examples})})
    return Message(content, reply_to=message)


def released(privacy: ClientPrivacy, number: int, updates: list[Adapter]) -> Adapter | None:
    """Play a round in which clients of very different size answer."""
    messages = asked(privacy, number)
    replies = [answer(m, u, 10**i) for i, (m, u) in enumerate(zip(messages, updates, strict=False))]
    merged, _ = privacy.aggregate_train(number, replies)
    return None if merged is None else {name: array.numpy() for name, array in merged.items()}


def moved(by: float) -> Adapter:
    return {name: value + np.float32(by) for name, value in START.items()}


def norm(update: Mapping[str, NDArray[Any]]) -> float:
    return math.sqrt(sum(float(np.square(v.astype(float) - START[n]).sum()) for n, v in update.items()))


def test_every_client_counts_alike_and_none_for_more_than_the_norm() -> None:
    small, large = moved(1e-3), moved(5.0)
    found = released(made(2, noise_multiplier=NO_NOISE), 1, [small, large])
    assert found is not None
    assert norm(small) < 1 < norm(large)
    for name, start in START.items():
        expected = ((small[name] - start) + (large[name] - start) / norm(large)) / 2
        np.testing.assert_allclose(found[name] - start, expected, rtol=1e-3, atol=1e-6)


def test_client_more_or_less_moves_the_mean_by_no_more_than_its_share() -> None:
    """One whose update is zero stands for one that is not there: the number of clients counts as known."""
    without = released(made(2, noise_multiplier=NO_NOISE, clipping_norm=0.3), 1, [moved(1.0), START])
    there = released(made(2, noise_multiplier=NO_NOISE, clipping_norm=0.3), 1, [moved(1.0), moved(-7.0)])
    assert without is not None and there is not None
    difference = {name: there[name] - without[name] + START[name] for name in START}
    assert norm(difference) == pytest.approx(0.3 / 2, rel=1e-3)


def test_clients_that_learnt_nothing_do_not_divide_by_zero() -> None:
    found = released(made(noise_multiplier=NO_NOISE), 1, [START] * 4)
    assert found is not None
    assert norm(found) < 1e-4


def test_arrays_in_another_order_are_clipped_by_their_names() -> None:
    update = {name: value + 1 for name, value in START.items()}
    turned = dict(reversed(update.items()))
    assert list(turned) != list(update)
    same = [released(made(2, noise_multiplier=NO_NOISE), 1, [one, START]) for one in (update, turned)]
    assert same[0] is not None and same[1] is not None
    assert list(same[0]) == list(START)
    for name in START:
        np.testing.assert_array_equal(same[0][name], same[1][name])


def test_noise_has_the_size_that_is_accounted_for() -> None:
    found = released(made(clipping_norm=0.5, noise_multiplier=3.0), 1, [START] * 4)
    assert found is not None
    expected = 3.0 * 0.5 / 4
    size = START["a"].size
    assert abs(found["a"].std() - expected) < 5 * expected / math.sqrt(2 * size)
    assert abs(found["a"].mean()) < 5 * expected / math.sqrt(size)


def test_noise_follows_from_seed_and_round_and_leaves_the_global_generator_alone() -> None:
    state = np.random.get_state()[1]  # noqa: NPY002
    first, again = (released(made(), 1, [START] * 4) for _ in range(2))
    other_round, other_seed = released(made(), 2, [START] * 4), released(made(seed=4), 1, [START] * 4)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert first is not None and again is not None and other_round is not None and other_seed is not None
    np.testing.assert_array_equal(first["a"], again["a"])
    for other in (other_round, other_seed):
        assert abs(np.corrcoef(first["a"], other["a"])[0, 1]) < 0.03


def test_secret_noise_is_never_the_same() -> None:
    first, second = (released(made(seed=None), 1, [START] * 4) for _ in range(2))
    assert first is not None and second is not None
    assert first["a"].std() == pytest.approx(second["a"].std(), rel=0.05)
    assert abs(np.corrcoef(first["a"], second["a"])[0, 1]) < 0.03


@pytest.mark.parametrize("how", ["missing", "error"])
def test_nothing_is_released_unless_all_answer(how: str) -> None:
    privacy = made()
    messages = asked(privacy, 1)
    replies = [answer(message, START, 5) for message in messages[:3]]
    if how == "error":
        replies.append(Message(Error(code=2, reason="ValueError"), reply_to=messages[3]))
    assert privacy.aggregate_train(1, replies) == (None, None)
    assert privacy.epsilon == 0.0


# What is spent.


@pytest.mark.parametrize(
    ("noise", "rounds", "delta", "clients"),
    [(1.0, 2, 1e-5, 4), (0.7, 5, 1e-3, 2), (3.0, 10, 1e-5, 5), (8.0, 10, 1e-6, 3), (2.0, 1, 1e-4, 40)],
)
def test_epsilon_of_clients_is_that_of_dp_accounting(noise: float, rounds: int, delta: float, clients: int) -> None:
    privacy = made(clients, noise_multiplier=noise, target_delta=delta)
    for number in range(1, rounds + 1):
        assert released(privacy, number, [START] * clients) is not None
    event = dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(noise), rounds)
    assert privacy.epsilon == pytest.approx(rdp.RdpAccountant().compose(event).get_epsilon(delta), rel=1e-12)
    tight = pld.PLDAccountant(value_discretization_interval=1e-3).compose(event).get_epsilon(delta)
    assert 0.9 * tight < privacy.epsilon < 1.3 * tight


@pytest.mark.parametrize(
    ("noise", "cases", "batch", "steps", "delta"),
    [(1.0, 150, 16, 100, 1e-4), (2.0, 150, 16, 100, 6.7e-4), (0.8, 200, 8, 120, 1e-5), (4.0, 500, 64, 40, 1e-5),
     (1.5, 10, 16, 3, 1e-3)],
)  # fmt: skip
def test_epsilon_of_cases_is_that_of_dp_accounting(
    noise: float, cases: int, batch: int, steps: int, delta: float
) -> None:
    """Two rounds of half the steps; the last client has fewer cases than a batch, and draws all in every step."""
    ledger = ledger_of_cases(cases, 3 * cases, batch=batch, steps=steps, noise_multiplier=noise, target_delta=delta)
    ledger.after({0: 0, 1: 0})
    ledger.after({0: cases, 1: 0})
    rate = min(1.0, batch / cases)
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    own = rdp.RdpAccountant().compose(dp_event.SelfComposedDpEvent(event, 2 * steps)).get_epsilon(delta)
    assert ledger.epsilon == pytest.approx(own, rel=1e-12)
    peer = RDPAccountant()
    peer.history = [(noise, rate, 2 * steps)]
    assert ledger.epsilon == pytest.approx(peer.get_epsilon(delta), rel=0.05)


def test_epsilon_is_the_largest_over_clients_and_counts_only_rounds_that_they_were_asked_in() -> None:
    ledger = ledger_of_cases(100, 50, 400)
    assert ledger.epsilon == 0.0
    for partitions in ([0, 2], [0, 1], [0, 2]):
        ledger.after(dict.fromkeys(partitions, 0))
    assert ledger.steps == {0: 60, 1: 20, 2: 40}
    every = [epsilon_of(8 / n, PrivacySettings(), steps) for n, steps in ((100, 60), (50, 20), (400, 40))]
    assert ledger.epsilon == max(every)
    assert len(set(every)) == 3


def test_cases_count_as_the_client_tells_and_all_are_drawn_where_nobody_does() -> None:
    ledger = ledger_of_cases()
    ledger.after({0: 0})
    assert ledger.epsilon == epsilon_of(1.0, PrivacySettings(), 20)
    ledger.after({0: 80})
    assert ledger.epsilon == epsilon_of(0.1, PrivacySettings(), 40)


def test_orders_that_are_left_out_are_not_reported(capfd: pytest.CaptureFixture[str]) -> None:
    epsilon_of(0.31, PrivacySettings(kind="record", noise_multiplier=0.61), 61)
    assert capfd.readouterr().err == ""


def test_budget_ends_before_the_round_that_would_overrun() -> None:
    privacy = made(noise_multiplier=1.0, max_epsilon=6.0)
    assert released(privacy, 1, [START] * 4) is not None
    spent = privacy.epsilon
    with pytest.raises(BudgetSpent, match=r"round 2 would spend more .* \(epsilon 4\.\d\d of 6 is spent\)"):
        asked(privacy, 2)
    assert privacy.epsilon == spent < 6

    ledger = ledger_of_cases(100, 50, max_epsilon=12.0)
    rounds = 0
    with pytest.raises(BudgetSpent, match="budget of privacy"):
        for rounds in range(1, 100):
            ledger.before(rounds, [0, 1])
            ledger.after({0: 100, 1: 50})
    assert 1 < rounds < 50
    assert ledger.epsilon <= 12.0 < epsilon_of(8 / 50, PrivacySettings(), 20 * rounds)
    ledger.before(rounds, [0])  # the larger client has some left


@pytest.mark.parametrize("limit", [None, 10.0])
def test_resumed_accountants_have_spent_the_same(limit: float | None) -> None:
    whole, first = made(max_epsilon=limit), made(max_epsilon=limit)
    for number in (1, 2):
        released(whole, number, [START] * 4)
        released(first, number, [START] * 4)
    second = made(max_epsilon=limit)
    second.restore(first.state())
    for one in (whole, second):
        released(one, 3, [START] * 4)
    assert second.epsilon == whole.epsilon
    assert second.state().keys() == whole.state().keys()
    assert all(np.array_equal(value, whole.state()[key]) for key, value in second.state().items())
    if limit is not None:
        for one in (whole, second):
            with pytest.raises(BudgetSpent):
                asked(one, 4)

    ledger = ledger_of_cases(100, 50)
    ledger.after({1: 60})
    again = ledger_of_cases(100, 50)
    again.restore({})
    assert again.epsilon == 0.0
    again.restore(ledger.state())
    assert again.epsilon == ledger.epsilon == epsilon_of(8 / 60, PrivacySettings(), 20)


# Where numbers come from.


@pytest.mark.parametrize("seed", [5, None])
def test_draws_have_their_distribution(seed: int | None) -> None:
    source, size = NoiseSource(seed), 40_000
    normal, uniform = source.normal(torch.Size([size // 2, 2]), "n").flatten(), source.uniform(size, "u")
    assert normal.dtype == uniform.dtype == torch.float64
    assert abs(normal.mean()) < 5 / math.sqrt(size)
    assert abs(normal.square().mean() - 1) < 5 * math.sqrt(2 / size)
    assert abs(normal.pow(4).mean() - 3) < 5 * math.sqrt(96 / size)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * size)
    again = source.normal(torch.Size([size // 2, 2]), "n").flatten()
    assert torch.equal(normal, again) == (seed is not None)


# What is refused.


@pytest.mark.parametrize(("kind", "package"), [("client", "dp_accounting"), ("record", "opacus")])
def test_without_its_packages_one_line_says_what_to_install(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    check_extra(PrivacySettings())
    with pytest.raises(InputError) as error:
        check_extra(PrivacySettings(kind=kind))
    assert str(error.value).startswith(f"privacy.kind: {kind}: the package {package} is not installed")
    assert "pip install 'fllm[dp]'" in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_imported_unless_asked_for() -> None:
    code = (
        "import sys, fllm.runs, fllm.federation.privacy_record;"
        "print([name for name in ('opacus', 'dp_accounting') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"privacy": {"noise_multiplier": 2.0}}, "noise_multiplier has no effect with none"),
        ({"privacy": {"kind": "client"}, "strategy": {"kind": "krum"}, "num_clients": 8}, "plain averages"),
        ({"privacy": {"kind": "client"}, "strategy": {"factors": "svd"}}, "plain averages"),
        ({"privacy": {"kind": "record"}, "lora": {"train_scalers": True}}, "no gradient per case"),
        ({"privacy": {"kind": "record"}, "lora": {"dropout": 0.1}}, "place in the batch"),
        ({"privacy": {"kind": "record", "noise_multiplier": 0.0}}, "greater than 0"),
    ],
)  # fmt: skip
def test_settings_without_a_guarantee_are_refused(tree: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        validate_config(tree, "here")


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("record", {"target_delta": 0.01}, r"privacy\.target_delta: delta must lie below .* cases .*1/250"),
        ("client", {"target_delta": 0.3}, r"privacy\.target_delta: delta must lie below .* clients.*1/4"),
        ("record", {"max_epsilon": 1.0}, r"privacy\.max_epsilon: the first round alone .*at least \d"),
        ("client", {"max_epsilon": 4.0}, r"privacy\.max_epsilon: the first round alone .*at least 4\.\d"),
    ],
)
def test_run_that_could_not_do_one_round_is_refused(kind: Any, settings: dict[str, Any], named: str) -> None:
    terms = PrivacyTerms(PrivacySettings(kind=kind, **settings), 4, 4, (20, 250), 8, 20)
    with pytest.raises(InputError, match=named):
        terms.check()
    replace(terms, settings=PrivacySettings(kind=kind)).check()
