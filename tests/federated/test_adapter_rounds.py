"""What the settings of an adapter do in a round: what moves, what is sent, and that clients do not see each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from device_models import InputError
from fllm.config import RunConfig
from fllm.federation.client_app import make_client_app
from fllm.federation.engines import InProcessGrid
from fllm.federation.factors import factors_of
from fllm.federation.server_app import Round, Start, Terms, federate
from fllm.lora_baselines import lora_baseline
from fllm.model.adapters import adapter_digest, frozen_adapter, get_adapter, set_adapter, whole_adapter
from fllm.observer import Observer
from fllm.outcome import evaluate_everywhere
from fllm.preparation import Prepared, prepare
from fllm.sections import LoraSettings, StrategySettings
from tests.fllm.small import SHORT

Adapter = dict[str, Tensor]


def prepared_with(**lora: Any) -> Prepared:
    return prepare(RunConfig(**SHORT, lora=LoraSettings(**lora)), Observer())


@pytest.fixture(scope="module")
def plain() -> Prepared:
    return prepared_with(r=4)


@pytest.fixture(scope="module")
def frozen() -> Prepared:
    return prepared_with(r=4, freeze_a=True)


@pytest.fixture(scope="module")
def with_scalers() -> Prepared:
    return prepared_with(r=4, train_scalers=True)


def one_round(
    prepared: Prepared, strategy: StrategySettings | None = None, number: int = 1
) -> tuple[Round, InProcessGrid]:
    """Run rounds of the federation, mostly one, from the adapter that the run begins with; return the last."""
    set_adapter(prepared.model, prepared.first_adapter)
    outcomes: list[Round] = []
    clients = prepared.config.num_clients
    grid = InProcessGrid(make_client_app(prepared.hospitals.__getitem__), clients)
    start = Start(get_adapter(prepared.model), frozen=frozen_adapter(prepared.model))
    federate(grid, Terms(strategy or StrategySettings(), clients, number), start, outcomes.append)
    return outcomes[-1], grid


def test_frozen_a_halves_what_is_sent_both_ways(plain: Prepared, frozen: Prepared) -> None:
    free, half = one_round(plain), one_round(frozen)
    assert {name.split(".")[-2] for name in half[0].adapter} == {"lora_B"}
    values = [sum(4 * tensor.numel() for tensor in found[0].adapter.values()) for found in (free, half)]
    headers = [found[0].uplink_bytes / 3 - size for found, size in zip((free, half), values, strict=True)]
    assert headers[1] == pytest.approx(headers[0] / 2, rel=0.01)
    for way in ("uplink_bytes", "downlink_bytes"):
        own = {name: t.numel() for name, t in free[0].adapter.items()}
        b_only = sum(n for name, n in own.items() if "lora_B" in name) / sum(own.values())
        assert getattr(half[0], way) / getattr(free[0], way) == pytest.approx(b_only, rel=0.02)
        assert 0.4 < b_only < 0.6
    assert frozen.record["model"]["adapter_parameters"] == values[1] // 4


def test_frozen_a_is_the_seeds_at_every_client_and_after_the_round(frozen: Prepared) -> None:
    first = whole_adapter(prepared_with(r=4, freeze_a=True).model)
    outcome, _ = one_round(frozen)
    now = whole_adapter(frozen.model)
    assert all(torch.equal(now[name], first[name]) for name in first if "lora_A" in name)
    assert all(bool(tensor.any()) for tensor in outcome.adapter.values())


def test_average_of_b_is_the_average_of_the_products(frozen: Prepared) -> None:
    """What FFA-LoRA is for: with one A, averaging B is exact."""
    start = frozen.first_adapter
    updates = [hospital.train(start, 1) for hospital in frozen.hospitals]
    outcome, _ = one_round(frozen)
    weights = torch.tensor([float(update.examples) for update in updates])
    a = {name: tensor for name, tensor in whole_adapter(frozen.model).items() if "lora_A" in name}
    for name, averaged in outcome.adapter.items():
        factor = a[name.replace("lora_B", "lora_A")]
        products = torch.stack([update.adapter[name] @ factor for update in updates])
        mean = (weights[:, None, None] * products).sum(0) / weights.sum()
        torch.testing.assert_close(averaged @ factor, mean, rtol=1e-4, atol=1e-7)


def test_averaging_error_is_none_with_a_frozen_a(plain: Prepared, frozen: Prepared) -> None:
    """Averages of A and B apart lose something once both have moved, in the second step; of B alone, nothing."""
    lost, kept = (one_round(prepared, number=3)[0].aggregation_error for prepared in (plain, frozen))
    assert lost is not None and kept is not None
    assert lost > 1e-3
    assert kept < 1e-6


def test_best_factors_have_the_product_of_the_average_where_that_is_exact(plain: Prepared) -> None:
    """In the first step B alone moves."""
    averaged, best = (one_round(plain, StrategySettings(factors=kind))[0] for kind in ("average", "svd"))  # type: ignore[arg-type]
    assert best.aggregation_error is not None and best.aggregation_error < 1e-6
    theirs = factors_of(averaged.adapter)
    for name, (b, a) in factors_of(best.adapter).items():
        assert b.shape == theirs[name][0].shape and a.shape == theirs[name][1].shape
        assert not torch.equal(a, theirs[name][1])
        expected = theirs[name][0] @ theirs[name][1]
        torch.testing.assert_close(b @ a, expected, rtol=0, atol=1e-6 * expected.norm().item())


def test_medians_are_no_averages(plain: Prepared) -> None:
    assert one_round(plain, StrategySettings(kind="fedmedian"))[0].aggregation_error is None


def scalers(adapter: Adapter) -> Adapter:
    return {name: tensor for name, tensor in adapter.items() if ".gain_cell." in name}


def test_scalers_are_sent_and_move(with_scalers: Prepared) -> None:
    outcome, _ = one_round(with_scalers)
    first = scalers(dict(with_scalers.first_adapter))
    moved = scalers(outcome.adapter)
    assert set(moved) == set(first) and len(first) == 8 * with_scalers.record["model"]["layers"]
    kinds = {name.split(".gain_cell.")[1] for name in moved if not torch.equal(moved[name], first[name])}
    assert kinds == {f"{part}.{of}" for part in ("query", "key", "value", "output") for of in ("gain", "offset")}


def test_scalers_of_a_client_do_not_reach_the_next(with_scalers: Prepared) -> None:
    start, (first, second, _) = with_scalers.first_adapter, with_scalers.hospitals
    alone = adapter_digest(second.train(start, 1).adapter)
    own = adapter_digest(first.train(start, 1).adapter)
    assert adapter_digest(second.train(start, 1).adapter) == alone != own


def test_evaluation_is_that_of_the_scalers_that_are_set(with_scalers: Prepared) -> None:
    """On both devices, whoever trained in between."""
    set_adapter(with_scalers.model, with_scalers.first_adapter)
    before = evaluate_everywhere(with_scalers)
    trained = with_scalers.hospitals[0].train(with_scalers.first_adapter, 1).adapter
    after = evaluate_everywhere(with_scalers)
    set_adapter(with_scalers.model, with_scalers.first_adapter)
    again = evaluate_everywhere(with_scalers)
    for one, two, other in ((before.ideal, again.ideal, after.ideal), (before.dies[0], again.dies[0], after.dies[0])):
        assert one.perplexity == two.perplexity != other.perplexity
    only_lora = {name: with_scalers.first_adapter[name] if ".gain_cell." in name else t for name, t in trained.items()}
    set_adapter(with_scalers.model, only_lora)
    assert evaluate_everywhere(with_scalers).ideal.perplexity != after.ideal.perplexity


def test_baselines_leave_the_adapter_with_its_scalers(with_scalers: Prepared) -> None:
    set_adapter(with_scalers.model, with_scalers.first_adapter)
    lora_baseline("centralised", with_scalers, lambda _: None)
    assert adapter_digest(get_adapter(with_scalers.model)) == adapter_digest(with_scalers.first_adapter)


def test_range_of_the_readout_can_be_learned_with_the_scalers_alone() -> None:
    device = {"readout.range": "learned"}
    with pytest.raises(InputError, match="nothing learns the range of the readout"):
        prepare(RunConfig(**SHORT, device=device), Observer())
    prepared = prepare(RunConfig(**SHORT, device=device, lora=LoraSettings(r=2, train_scalers=True)), Observer())
    start = prepared.first_adapter
    trained = prepared.hospitals[0].train(start, 1).adapter
    ranges = [name for name in start if name.endswith("full_scale")]
    assert ranges and all(not torch.equal(trained[name], start[name]) for name in ranges)


def test_unknown_target_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from fllm.runs import run

    with pytest.raises(InputError, match=r"lora\.targets: no ternary layer"):
        run(RunConfig(**SHORT, lora=LoraSettings(targets=("c_attn",))), out=tmp_path / "out", name="run")
    assert not (tmp_path / "out").exists()
