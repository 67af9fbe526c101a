"""What secure aggregation is built of: fixed-point numbers, shares, sealed letters and masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare
from sympy import isprime

from fllm.federation.secure.fixed_point import FixedPoint, ValueOutOfRange, numbers_of
from fllm.federation.secure.masks import mask, new_key, public_of, seal, shared_key, unseal
from fllm.federation.secure.shares import PRIME, combine, factors_at_zero, split

ONE_IN_A_MILLION = 1e-6
"""Chance of a random test to fail; shares are drawn anew in every run."""

# --- fixed-point numbers

FIXED = FixedPoint()
SHAPES: dict[str, tuple[int, ...]] = {"b": (2, 3), "a": (4,), "loss": ()}


def values_of(seed: int, scale: float) -> dict[str, NDArray[np.float32]]:
    made = np.random.default_rng(seed)
    return {name: made.uniform(-scale, scale, shape).astype(np.float32) for name, shape in SHAPES.items()}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 10**6)), min_size=1, max_size=16),
    st.floats(1e-6, FIXED.limit),
)
def test_the_mean_is_as_close_as_stated(clients: list[tuple[int, int]], scale: float) -> None:
    updates = [(values_of(seed, scale), weight) for seed, weight in clients]
    total = np.sum([FIXED.encode(v, w, len(updates)) for v, w in updates], axis=0, dtype=np.uint64)
    means, weight = FIXED.decode(total, SHAPES)
    assert weight == sum(w for _, w in updates)
    for name, shape in SHAPES.items():
        exact = sum(v[name].astype(np.longdouble) * w for v, w in updates) / weight
        assert means[name].shape == shape
        assert np.abs(means[name] - exact).max() <= 2.0 ** -(FIXED.fraction_bits + 1) + 2.0**-50 * scale


def test_the_largest_values_and_weights_do_not_overflow() -> None:
    for clients in (1, 3, 16, 1000):
        weight = FIXED.largest_weight(clients)
        for value in (FIXED.limit, -FIXED.limit):
            one = FIXED.encode({"a": np.full(2, value)}, weight, clients)
            total = np.sum([one] * clients, axis=0, dtype=np.uint64)
            means, added = FIXED.decode(total, {"a": (2,)})
            assert (means["a"] == value).all() and added == clients * weight
    assert FIXED.largest_weight(16) == 8_388_607  # as the docstring says


@pytest.mark.parametrize("value", [64.0001, -65.0, np.nan, np.inf, -np.inf])
def test_values_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ValueOutOfRange, match="lora_A has a value beyond 64"):
        FIXED.encode({"lora_A": np.array([0.0, value])}, 1, 4)


@pytest.mark.parametrize("weight", [0, -1, FIXED.largest_weight(4) + 1])
def test_weights_out_of_range_are_refused(weight: int) -> None:
    with pytest.raises(ValueOutOfRange, match=f"a weight of {weight}: expected 1 to"):
        FIXED.encode({"a": np.zeros(2)}, weight, 4)


def test_a_sum_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="5 numbers for values of 12"):
        FIXED.decode(np.ones(5, dtype=np.uint64), SHAPES)
    with pytest.raises(ValueError, match="weights add up to 0"):
        FIXED.decode(np.zeros(numbers_of(SHAPES), dtype=np.uint64), SHAPES)


# --- primitives


def test_any_shares_of_the_threshold_show_the_secret_and_fewer_do_not() -> None:
    assert isprime(PRIME)
    secret = bytes(range(32))
    shares = split(secret, 3, (0, 1, 4, 2**63))
    for holders in itertools.combinations(shares, 3):
        assert combine(shares, factors_at_zero(holders)) == secret
    assert len({*shares.values(), secret}) == 5
    for holders in itertools.combinations(shares, 2):
        try:
            assert combine(shares, factors_at_zero(holders)) != secret
        except ValueError as error:
            assert "do not belong together" in str(error)


def test_a_share_below_the_threshold_is_uniform() -> None:
    shares = [split(bytes(32), 2, (0,))[0][1] for _ in range(10_000)]  # the top byte of 256 bits
    assert chisquare(np.bincount(shares, minlength=256)).pvalue > ONE_IN_A_MILLION


def test_what_is_sealed_opens_with_its_key_alone() -> None:
    key = new_key()
    sealed = seal(key, b"shares")
    assert b"shares" not in sealed and seal(key, b"shares") != sealed
    assert unseal(key, sealed) == b"shares"
    with pytest.raises(ValueError, match="changed on its way"):
        unseal(new_key(), sealed)


def test_two_clients_agree_on_a_key() -> None:
    one, other = new_key(), new_key()
    assert shared_key(one, public_of(other), "mask", 1) == shared_key(other, public_of(one), "mask", 1)


def test_a_mask_is_the_stream_of_chacha20() -> None:
    """RFC 8439, A.1, test vector 1: key, nonce and counter are zero."""
    assert mask(bytes(32), 2).astype("<u8").tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"
