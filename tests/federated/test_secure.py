"""Secure aggregation without a network: exact sums whoever drops out, and what clients and server refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from fllm.federation.secure.client import SecureClient
from fllm.federation.secure.fixed_point import FixedPoint
from fllm.federation.secure.masks import mask, new_key, public_of, shared_key
from fllm.federation.secure.messages import ProtocolRefused, Revealed, SecureAggregationFailed
from fllm.federation.secure.server import SecureServer
from fllm.federation.secure.shares import SHARE_BYTES, combine, factors_at_zero
from fllm.federation.secure.thresholds import check_threshold, default_threshold

Numbers = NDArray[np.uint64]
SIZE = 5
ONE_IN_A_MILLION = 1e-6
"""Chance of a random test to fail; masks are drawn anew in every run."""


@dataclass
class Played:
    """A round that is played stage by stage; clients in ``quit[stage]`` do not answer in that stage or later."""

    numbers: dict[int, Numbers]
    threshold: int
    quit: dict[str, set[int]] = field(default_factory=dict)
    restart: bool = False

    def __post_init__(self) -> None:
        self.clients = {u: SecureClient(u, 3, self.threshold) for u in self.numbers}
        self.server = SecureServer(3, self.threshold)
        self.sent: dict[int, Numbers] = {}

    def there(self, stage: str, asked: Any) -> dict[int, SecureClient]:
        gone = set().union(*(who for name, who in self.quit.items() if STAGES.index(name) <= STAGES.index(stage)))
        if self.restart:  # each stage in another process
            self.clients = {u: SecureClient.from_bytes(client.to_bytes()) for u, client in self.clients.items()}
        return {u: self.clients[u] for u in asked if u not in gone}

    def until_shares(self) -> dict[int, dict[int, bytes]]:
        members = self.server.take_keys((u, c.keys()) for u, c in self.there("keys", self.numbers).items())
        return self.server.take_shares((u, c.shares(members)) for u, c in self.there("shares", members).items())

    def until_masked(self) -> None:
        letters = self.until_shares()
        self.sent = {u: c.masked(letters[u], self.numbers[u]) for u, c in self.there("masked", letters).items()}
        self.server.take_masked(self.sent.items(), SIZE)

    def revealed(self) -> dict[int, Revealed]:
        who = self.server.survivors, self.server.dropped
        return {u: c.reveal(*who) for u, c in self.there("reveal", self.server.survivors).items()}

    def total(self) -> Numbers:
        self.until_masked()
        return self.server.take_revealed(self.revealed().items())


STAGES = ("keys", "shares", "masked", "reveal")


def some_numbers(clients: int, size: int = SIZE) -> dict[int, Numbers]:
    made = np.random.default_rng(clients)
    return {u: made.integers(0, 2**64, size, dtype=np.uint64) for u in range(clients)}


def plain_sum(numbers: Mapping[int, Numbers], arrived: Any) -> Numbers:
    return np.sum([numbers[u] for u in arrived], axis=0, dtype=np.uint64)


# --- the sum


@pytest.mark.parametrize("clients", [2, 3, 8])
def test_the_sum_is_exact(clients: int) -> None:
    played = Played(some_numbers(clients), default_threshold(clients))
    np.testing.assert_array_equal(played.total(), plain_sum(played.numbers, range(clients)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whoever_drops_out_the_sum_is_that_of_those_whose_values_arrived(data: st.DataObject) -> None:
    clients = data.draw(st.integers(3, 7))
    threshold = data.draw(st.integers(clients // 2 + 1, clients))
    leaving = data.draw(st.lists(st.sampled_from(range(clients)), unique=True, max_size=clients - threshold))
    stages = {u: data.draw(st.sampled_from(STAGES)) for u in leaving}
    gone = {stage: {u for u in leaving if stages[u] == stage} for stage in STAGES}
    played = Played(some_numbers(clients), threshold, gone, restart=data.draw(st.booleans()))
    arrived = [u for u in range(clients) if stages.get(u, "reveal") == "reveal"]
    np.testing.assert_array_equal(played.total(), plain_sum(played.numbers, arrived))


@pytest.mark.parametrize("stage", STAGES)
def test_fewer_than_the_threshold_end_the_round_at_any_stage(stage: str) -> None:
    played = Played(some_numbers(5), 4, {stage: {0, 3}})
    words = {"keys": "announced keys", "shares": "dealt shares", "masked": "sent masked", "reveal": "revealed shares"}
    with pytest.raises(SecureAggregationFailed, match=f"round 3: 3 clients {words[stage]}.*threshold of 4"):
        played.total()


def test_two_rounds_give_the_same_sum_under_other_masks() -> None:
    first, second = (Played(some_numbers(4), 3) for _ in range(2))
    np.testing.assert_array_equal(first.total(), second.total())
    assert all((first.sent[u] != second.sent[u]).all() for u in range(4))


# --- what a single masked vector shows


def top_bytes(numbers: Numbers) -> NDArray[np.int64]:
    return np.bincount((numbers >> np.uint64(56)).astype(np.int64), minlength=256)


def test_a_masked_vector_looks_uniform_and_an_unmasked_one_does_not() -> None:
    values = {"a": np.random.default_rng(0).normal(0, 0.01, 100_000)}
    encoded = FixedPoint().encode(values, 120, 3)
    numbers = dict.fromkeys(range(3), encoded)
    played = Played(numbers, 2)
    letters = played.until_shares()
    sent = [played.clients[u].masked(letters[u], encoded) for u in range(3)]
    for one in sent:
        assert chisquare(top_bytes(one)).pvalue > ONE_IN_A_MILLION
        assert abs(np.corrcoef(one.astype(float), encoded.view(np.int64).astype(float))[0, 1]) < 5 / len(encoded) ** 0.5
    assert chisquare(top_bytes(encoded)).pvalue < ONE_IN_A_MILLION
    assert chisquare(top_bytes(sent[0] - sent[1])).pvalue > ONE_IN_A_MILLION  # no mask is common to clients


def test_values_that_arrive_after_the_mask_key_was_revealed_stay_masked() -> None:
    """Without the clients' own masks, a late client would stand bare: its mask key is known by then."""
    played = Played(some_numbers(3), 2, {"masked": {2}})
    letters = played.until_shares()
    late = played.clients[2].masked(letters[2], played.numbers[2])
    sent = {u: played.clients[u].masked(letters[u], played.numbers[u]) for u in (0, 1)}
    played.server.take_masked(sent.items(), SIZE)
    shares = {u: revealed.keys[2] for u, revealed in played.revealed().items()}
    key = combine(shares, factors_at_zero(shares))
    keys = played.server.members
    assert public_of(key) == keys[2].masks
    for other in (0, 1):  # the pairs' masks come off
        drawn = mask(shared_key(key, keys[other].masks, "mask", 3, other, 2), SIZE)
        late = late + drawn
    own = mask(played.clients[2].seed, SIZE)
    np.testing.assert_array_equal(late - own, played.numbers[2])
    assert (late != played.numbers[2]).all()


def test_secrets_are_not_shown_and_are_forgotten_in_the_end() -> None:
    played = Played(some_numbers(3), 2)
    client = played.clients[0]
    secrets = [client.letter_key, client.mask_key, client.seed]
    played.total()
    assert not any(secret.hex() in repr(client) or repr(secret) in repr(client) for secret in secrets)
    kept = client.to_bytes().decode()
    assert not any(secret.hex() in kept for secret in secrets)
    assert (client.stage, client.held) == ("done", {})


# --- what a client refuses


def test_a_server_that_asks_for_both_shares_of_a_client_is_refused() -> None:
    played = Played(some_numbers(4), 3)
    played.until_masked()
    with pytest.raises(ProtocolRefused, match="both the seed and the mask key"):
        played.clients[0].reveal((0, 1, 2, 3), (3,))


def test_a_server_that_asks_again_is_refused() -> None:
    played = Played(some_numbers(4), 3)
    played.until_masked()
    played.clients[0].reveal((0, 1, 2, 3), ())
    with pytest.raises(ProtocolRefused, match="the next stage of this round is done"):
        played.clients[0].reveal((0, 1, 2), (3,))


@pytest.mark.parametrize(
    ("survivors", "dropped", "message"),
    [
        ((0, 1), (2, 3), "2 survivors, fewer than the threshold of 3"),
        ((0, 1, 2), (), "not those whose masks"),
        ((0, 1, 2, 3, 4), (), "not those whose masks"),
        ((1, 2, 3), (0,), "not those whose masks"),
        ((0, 0, 1), (2, 3), "2 survivors"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(survivors: tuple[int], dropped: tuple[int], message: str) -> None:
    played = Played(some_numbers(4), 3)
    played.until_masked()
    with pytest.raises(ProtocolRefused, match=message):
        played.clients[0].reveal(survivors, dropped)


def test_stages_out_of_order_are_refused() -> None:
    client = SecureClient(0, 1, 2)
    with pytest.raises(ProtocolRefused, match="asked for masked, but the next stage of this round is shares"):
        client.masked({}, np.zeros(1, dtype=np.uint64))
    played = Played(some_numbers(3), 2)
    played.until_masked()
    with pytest.raises(ProtocolRefused, match="asked for masked"):  # other masks of the same secrets
        played.clients[0].masked({}, played.numbers[0])


def announced(clients: int = 4) -> tuple[SecureClient, dict[int, Any]]:
    made = [SecureClient(u, 1, 3) for u in range(clients)]
    return made[0], {u: client.keys() for u, client in enumerate(made)}


def test_announced_keys_that_do_not_fit_are_refused() -> None:
    client, members = announced()

    def refused(change: Mapping[int, Any], message: str) -> None:
        with pytest.raises(ProtocolRefused, match=message):
            copy.deepcopy(client).shares(members | change)

    refused({0: members[1]}, "keys of this client are not among")
    refused({2: members[1]}, "not each client's own")
    refused({2: replace(members[2], masks=members[1].masks)}, "not each client's own")
    refused({2: replace(members[2], letters=b"short")}, "not each client's own")
    refused({2: replace(members[2], letters=bytes(32))}, "keys are not sound")  # every private key agrees on zero
    refused({2: replace(members[2], masks=bytes(32))}, "keys are not sound")
    refused({u: SecureClient(u, 1, 3).keys() for u in (4, 5)}, "expected more than half")
    with pytest.raises(ProtocolRefused, match="more than the 2 clients"):
        client.shares({u: members[u] for u in (0, 1)})


def test_a_corrupted_share_is_noticed() -> None:
    played = Played(some_numbers(4), 3)
    letters = played.until_shares()
    changed = bytearray(letters[0][2])
    changed[-1] ^= 1
    with pytest.raises(ProtocolRefused, match="shares of client 2: a sealed letter was changed"):
        played.clients[0].masked(letters[0] | {2: bytes(changed)}, played.numbers[0])


def test_a_letter_to_another_or_from_another_is_noticed() -> None:
    played = Played(some_numbers(4), 3)
    letters = played.until_shares()
    for forged in (letters[1][2], letters[0][3], letters[2][0]):  # to client 1, from client 3, of client 0 itself
        with pytest.raises(ProtocolRefused, match="changed on its way"):
            played.clients[0].masked(letters[0] | {2: forged}, played.numbers[0])


def test_letters_of_too_few_or_unknown_clients_are_refused() -> None:
    played = Played(some_numbers(4), 3)
    letters = played.until_shares()[0]
    for wrong in ({1: letters[1]}, letters | {9: b""}, letters | {0: b""}):
        with pytest.raises(ProtocolRefused, match=f"shares of {len(wrong)} of 3 others"):
            played.clients[0].masked(wrong, played.numbers[0])


def test_another_round_shares_no_keys() -> None:
    private, public = new_key(), public_of(new_key())
    keys = {shared_key(private, public, what, *where) for what in ("mask", "letter") for where in ((1, 0), (2, 0))}
    assert len(keys) == 4


# --- what the server refuses


def test_a_second_answer_is_not_used() -> None:
    played = Played(some_numbers(4), 3)
    keys = [(u, client.keys()) for u, client in played.clients.items()]
    members = played.server.take_keys([*keys, (1, SecureClient(1, 3, 3).keys())])
    assert members[1] == keys[1][1]
    assert played.server.refused == {1: "it answered twice"}


def test_answers_that_do_not_fit_make_a_client_drop_out() -> None:
    played = Played(some_numbers(6), 4)
    clients, server = played.clients, played.server
    keys = {u: client.keys() for u, client in clients.items()}
    members = server.take_keys((keys | {5: keys[4]}).items())
    assert (set(members), server.refused) == ({0, 1, 2, 3, 4}, {5: "its keys are not sound, or another's"})
    dealt = {u: clients[u].shares(members) for u in members}
    del dealt[4][0]
    letters = server.take_shares([*dealt.items(), (5, {})])
    assert (server.refused[4], server.refused[5]) == ("its shares are not one for each other client",
                                                      "it had dropped out before")  # fmt: skip
    sent = {u: clients[u].masked(letters[u], played.numbers[u]) for u in letters}
    server.take_masked(sent.items(), SIZE)
    assert (server.survivors, server.dropped) == ((0, 1, 2, 3), ())
    revealed = {u: clients[u].reveal(server.survivors, server.dropped) for u in server.survivors}
    np.testing.assert_array_equal(server.take_revealed(revealed.items()), plain_sum(played.numbers, server.survivors))


@pytest.mark.parametrize(
    "change", [lambda n: n[:-1], lambda n: n.astype(np.float64), lambda n: n[None], lambda n: n.view(np.int64)]
)
def test_masked_values_of_another_form_are_not_added(change: Callable[[Any], Any]) -> None:
    played = Played(some_numbers(4), 3)
    letters = played.until_shares()
    sent = {u: c.masked(letters[u], played.numbers[u]) for u, c in played.clients.items()}
    played.server.take_masked((sent | {2: change(sent[2])}).items(), SIZE)
    assert (played.server.survivors, played.server.dropped) == ((0, 1, 3), (2,))
    assert played.server.refused == {2: "its masked values have another form"}
    answers = {u: played.clients[u].reveal((0, 1, 3), (2,)) for u in (0, 1, 3)}
    np.testing.assert_array_equal(played.server.take_revealed(answers.items()), plain_sum(played.numbers, (0, 1, 3)))


def test_revealed_shares_of_another_set_are_not_used() -> None:
    played = Played(some_numbers(4), 3, {"masked": {3}})
    played.until_masked()
    answers = played.revealed()
    swapped = Revealed(answers[0].keys, answers[0].seeds)
    with pytest.raises(SecureAggregationFailed, match=r"2 clients revealed shares.*not what it was asked for"):
        played.server.take_revealed((answers | {0: swapped}).items())


@pytest.mark.parametrize("what", ["seeds", "keys"])
def test_a_wrong_share_is_found_by_what_was_announced(what: str) -> None:
    played = Played(some_numbers(4), 3, {"masked": {3}})
    played.until_masked()
    answers = played.revealed()
    shares: dict[int, bytes] = getattr(answers[1], what)
    client, share = next(iter(shares.items()))
    shares[client] = (int.from_bytes(share) ^ 1).to_bytes(SHARE_BYTES)
    with pytest.raises(SecureAggregationFailed, match=f"client {client}.* (are not those|do not belong)"):
        played.server.take_revealed(answers.items())


@pytest.mark.parametrize(("threshold", "clients"), [(1, 1), (2, 4), (4, 8), (0, 3)])
def test_a_threshold_of_half_of_the_clients_protects_nobody(threshold: int, clients: int) -> None:
    keys = {u: SecureClient(u, 1, threshold).keys() for u in range(clients)}
    with pytest.raises(ValueError, match=f"a threshold of {threshold} of {clients} clients: expected more than half"):
        SecureServer(1, threshold).take_keys(keys.items())


def test_thresholds() -> None:
    assert [default_threshold(n) for n in (2, 3, 4, 5, 6, 9, 10)] == [2, 2, 3, 4, 4, 6, 7]
    for clients in range(2, 100):
        check_threshold(default_threshold(clients), clients)
    with pytest.raises(ValueError, match="more than the 3 clients"):
        check_threshold(4, 3)
