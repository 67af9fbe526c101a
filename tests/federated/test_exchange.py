"""What travels: its form both ways, what rounding loses and gives back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fllm.federation.exchange import LARGEST, PLAIN, SCALES, Exchange, decoded, encoded, rank_of
from fllm.sections import WireFormat

WIRES: tuple[WireFormat, ...] = ("float32", "float16", "int8")
LOSSY: tuple[WireFormat, ...] = ("float16", "int8")
A, B, SCALER = "m.lora_A.weight", "m.lora_B.weight", "scaler"


def adapter(seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(seed)
    shapes = {B: (5, 4), A: (4, 6), SCALER: (3,)}
    return {name: scale * torch.randn(shape, generator=made) for name, shape in shapes.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == torch.float32


def test_float32_comes_back_to_the_bit() -> None:
    assert_equal(decoded(encoded(adapter(), "float32")), adapter())


def test_float16_is_rounded_once_and_never_infinite() -> None:
    tensors = {"a": torch.tensor([1.0, 1 + 2**-11, 2**-24, 1e9, -1e9])}
    (found,) = decoded(encoded(tensors, "float16")).values()
    assert found.tolist() == [1.0, 1.0, 2**-24, 65504.0, -65504.0]


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6])
def test_int8_is_off_by_half_a_step_at_most(scale: float) -> None:
    tensors = adapter(scale=scale)
    record = encoded(tensors, "int8")
    assert {name: array.dtype for name, array in record.items()} == {A: "int8", B: "int8", SCALER: "int8"} | {
        SCALES: "float32"
    }
    for name, tensor in decoded(record).items():
        step = tensors[name].abs().max().item() / 127
        assert (tensor - tensors[name]).abs().max().item() <= 0.5001 * step
        assert tensor.abs().max().item() == pytest.approx(tensors[name].abs().max().item(), rel=1e-6)


@pytest.mark.parametrize("tensor", [torch.zeros(2, 3), torch.zeros(0, 3), torch.tensor(2.5)])
@pytest.mark.parametrize("wire", WIRES)
def test_nothing_all_zeros_and_a_single_number_travel_too(wire: WireFormat, tensor: Tensor) -> None:
    (found,) = decoded(encoded({"a": tensor}, wire)).values()
    torch.testing.assert_close(found, tensor, rtol=1e-6, atol=0)
    assert found.shape == tensor.shape


def test_steps_belong_to_their_tensors_whatever_the_order_of_names() -> None:
    tensors = {"b": torch.tensor([127.0]), "a": torch.tensor([1.27]), "c": torch.tensor([0.0127])}
    found = decoded(encoded(tensors, "int8"))
    assert {name: round(tensor.item(), 4) for name, tensor in found.items()} == {"b": 127, "a": 1.27, "c": 0.0127}


@pytest.mark.parametrize("wire", WIRES)
def test_bytes_shrink_with_the_format(wire: WireFormat) -> None:
    tensors = {f"t{i}": torch.randn(64, 64) for i in range(4)}
    sizes = {form: sum(len(array.data) for array in encoded(tensors, form).values()) for form in ("float32", wire)}
    share = {"float32": 1.0, "float16": 0.5, "int8": 0.25}[wire]
    assert sizes[wire] / sizes["float32"] == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("wire", WIRES)
def test_server_reads_what_a_client_trained(wire: WireFormat) -> None:
    exchange, server, trained = Exchange(wire), adapter(), adapter(1)
    start = exchange.received(exchange.down(server, 0), rank_of(server))
    record, lost = exchange.up(start, trained, 0, {})
    found = exchange.collected(record, 0, server)
    if wire == "float32":
        assert lost == {}
        assert_equal(found, trained)
        return
    for name, tensor in trained.items():  # the client's change of what it was sent, on top of the server's own
        torch.testing.assert_close(found[name] - server[name] + lost[name], tensor - start[name], rtol=0, atol=1e-6)
        assert 0 < lost[name].abs().max().item() < 0.02


@pytest.mark.parametrize("wire", LOSSY)
def test_what_was_lost_is_sent_the_next_time(wire: WireFormat) -> None:
    """Over many rounds nothing adds up: all that is missing is what the last one lost."""
    exchange, start = Exchange(wire), {"a": torch.zeros(50)}
    change = {"a": torch.linspace(-1, 1, 50) / 3}
    lost: dict[str, Tensor] = {}
    total, without = torch.zeros(50), torch.zeros(50)
    for _ in range(40):
        record, lost = exchange.up(start, change, 0, lost)
        total += decoded(record)["a"]
        without += decoded(exchange.up(start, change, 0, {})[0])["a"]
    torch.testing.assert_close(total + lost["a"], 40 * change["a"], rtol=0, atol=1e-4)
    missing = (total - 40 * change["a"]).abs().max(), (without - 40 * change["a"]).abs().max()
    assert missing[0] < missing[1] / 10


def test_server_keeps_what_the_wire_has_no_room_for() -> None:
    server = {"a": torch.tensor([1.0 + 2**-20])}
    exchange = Exchange("float16")
    start = exchange.received(exchange.down(server, 0), 0)
    record, _ = exchange.up(start, start, 0, {})
    assert torch.equal(exchange.collected(record, 0, server)["a"], server["a"])


# Ranks and personal factors.


def test_ranks_are_dealt_in_turn_and_filled_up_with_zeros() -> None:
    exchange, server = Exchange(ranks=(4, 2, 1)), adapter()
    assert [exchange.rank_of(partition) for partition in range(5)] == [4, 2, 1, 4, 2]
    assert PLAIN.rank_of(3) is None
    sent = exchange.down(server, 1)
    assert {name: tuple(array.shape) for name, array in sent.items()} == {A: (2, 6), B: (5, 2), SCALER: (3,)}
    start = exchange.received(sent, rank_of(server))
    assert torch.equal(start[A][:2], server[A][:2]) and torch.equal(start[B][:, :2], server[B][:, :2])
    assert not start[A][2:].any() and not start[B][:, 2:].any()
    assert torch.equal(start[SCALER], server[SCALER])
    record, _ = exchange.up(start, start, 1, {})
    found = exchange.collected(record, 1, server)
    torch.testing.assert_close(found[B] @ found[A], server[B][:, :2] @ server[A][:2])


def test_personal_b_stays_at_home() -> None:
    exchange = Exchange(personal_b=True)
    assert list(exchange.shared(adapter())) == [A, SCALER]
    assert list(exchange.personal(adapter())) == [B]
    server = exchange.shared(adapter())
    start = exchange.received(exchange.down(server, 0), 4) | exchange.personal(adapter(1))
    record, _ = exchange.up(start, adapter(2), 0, {})
    assert set(record) == {A, SCALER}
    assert_equal(exchange.collected(record, 0, server), exchange.shared(adapter(2)))


@pytest.mark.parametrize("exchange", [Exchange("int8"), Exchange(personal_b=True)])
def test_clients_keep_something_where_rounding_or_a_factor_stays(exchange: Exchange) -> None:
    assert exchange.keeps
    assert not PLAIN.keeps
    assert not Exchange(ranks=(2,)).keeps


# Refusals.


def change_of(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[ArrayRecord], None]:
    def change(record: ArrayRecord) -> None:
        record[name] = Array(make(record[name].numpy()))

    return change


def first_is(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = value
        return array

    return make


REFUSED: list[tuple[WireFormat, Callable[[ArrayRecord], None], str]] = [
    (wire, change, reason)
    for wire in WIRES
    for change, reason in (
        (lambda record: record.pop(A), "other tensors"),
        (lambda record: record.clear(), "other tensors"),
        (change_of(A, lambda array: array.T), "other shapes"),
        (change_of(A, lambda array: array[:2]), "other shapes"),
        (change_of(A, lambda array: array.astype(np.float64)), "numbers of another kind"),
        (change_of(A, lambda array: array.astype(np.int16)), "numbers of another kind"),
    )
] + [
    ("float32", change_of(A, first_is(np.nan)), "not finite"),
    ("float16", change_of(A, first_is(-np.inf)), "not finite"),
    ("float32", change_of(A, first_is(-1.1 * LARGEST)), "changes beyond"),
    ("int8", lambda record: record.pop(SCALES), "other tensors"),
    ("int8", change_of(SCALES, lambda array: array[:1]), "other shapes"),
    ("int8", change_of(SCALES, lambda array: array.astype(np.float16)), "numbers of another kind"),
    ("int8", change_of(SCALES, first_is(np.inf)), "not finite"),
    ("int8", change_of(SCALES, first_is(3e38)), "changes beyond"),
    ("float32", lambda record: record.update({SCALES: Array(np.ones(3, np.float32))}), "other tensors"),
]


@pytest.mark.parametrize(("wire", "change", "reason"), REFUSED)
def test_what_the_server_cannot_use_is_refused(
    wire: WireFormat, change: Callable[[ArrayRecord], None], reason: str
) -> None:
    exchange = Exchange(wire)
    record, _ = exchange.up(adapter(), adapter(1), 0, {})
    exchange.collected(record, 0, adapter())
    change(record)
    with pytest.raises(ValueError, match=f"update (has|is) .*{reason}|update is {reason}"):
        exchange.collected(record, 0, adapter())


def test_refusal_of_a_client_with_another_rank() -> None:
    exchange = Exchange(ranks=(4, 2))
    record, _ = exchange.up(adapter(), adapter(1), 0, {})
    with pytest.raises(ValueError, match="other shapes"):
        exchange.collected(record, 1, adapter())


def test_large_adapter_of_the_server_is_no_fault_of_a_client() -> None:
    server = {name: tensor * 100 * LARGEST for name, tensor in adapter().items()}
    record, _ = PLAIN.up(server, server, 0, {})
    assert_equal(PLAIN.collected(record, 0, server), server)
