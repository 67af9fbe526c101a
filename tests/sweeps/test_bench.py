"""A row of a sweep is what loading everything anew for its point alone gives, bit for bit; failures tell no text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fllm.sweeps.bench
from device_models import DeviceModel, InputError, load_device
from device_models.costs import PARTS
from device_models.quantities import parse_quantity
from device_models.retention import signal_left, stored_voltage
from fllm.accounting import stored_heads
from fllm.cases import load_cases
from fllm.config import RunConfig
from fllm.energy import energy_facts
from fllm.evaluation import METRICS, Scores
from fllm.federation.server_app import RoundFailed
from fllm.model.adapters import read_adapter, set_adapter
from fllm.preparation import HeldOut, device_of, evaluation_die, ideal_twin, load_bench
from fllm.runs import RunResult
from fllm.sweeps.bench import Held, Worker
from fllm.sweeps.plan import with_settings
from fllm.sweeps.table import CASES, FACTS, OK, bits, energy_column
from fllm.sweeps.table import METRICS as METRIC_COLUMNS
from fllm.sweeps.tasks import Task
from hwsim import EventCounts, count_events, emulate
from hwsim.analytic import analytic_events
from tests.fllm.small import CANARY, SHIPPED, copied
from tests.sweeps.small import SMALLEST

POINTS: dict[str, dict[str, object]] = {
    "as published": {},
    "another number of codes": {"device.readout.bits": 3},
    "calibrated readout": {"device.readout.range": "calibrated", "device.readout.bits": 4},
    "two-step adaptation": {"adaptation": "two_step", "device.readout.range": "calibrated"},
    "token period auto": {"token_period": "auto"},
    "small window": {"device.window.tokens": 16, "token_period": "40 us"},
    "refresh": {"device.refresh.kind": "periodic", "device.refresh.interval": "0.2 ms"},
    "other device": {"device_model": "gaincell_28nm_logic"},
    "no decay, no spread": {"device_model": "ideal"},
    "softmax": {"device_model": "sram_dcim_28nm"},
}


DIES = {"as published": 2}
"""Points that are scored on more than one chip."""


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker()


def config_of(**settings: object) -> RunConfig:
    return with_settings(RunConfig(**SMALLEST), settings)


def task_of(point: str, trained: RunResult, dies: tuple[int, ...] = (0,)) -> Task:
    return Task(7, 0, dies, config_of(**POINTS[point]), trained.folder / "adapter")


def scored(scores: Scores) -> dict[str, Any]:
    return {name: getattr(scores, name) for name in METRICS} | {"correct": bits(scores.correct)}


def load_alone(config: RunConfig, adapter: Path, dies: int = 1) -> dict[str, Any]:
    """Load everything for one point alone, as a run does, and score it."""
    torch.set_num_threads(1)
    device = device_of(config)
    cases = load_cases(config)
    bench = load_bench(config, cases.corpus.task, device)
    test = HeldOut(bench.encode(cases.split.test).of(cases.split.test), [])
    set_adapter(bench.model, read_adapter(adapter))
    period = bench.loaded.placing.token_period_s
    chips = [evaluation_die(config, device, number) for number in range(dies)]
    return {
        "dies": [scored(bench.score(test, device, chip, period)) for chip in chips],
        "ideal": scored(bench.score(test, ideal_twin(device), None, period)),
        "period": period,
    }


@pytest.fixture(scope="module")
def fresh(trained: RunResult) -> Any:
    """Return a function that loads one of the points alone, once."""

    @cache
    def load(point: str) -> dict[str, Any]:
        return load_alone(config_of(**POINTS[point]), trained.folder / "adapter", DIES.get(point, 1))

    return load


def assert_as_fresh(rows: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert [row["status"] for row in rows] == [OK] * len(rows), rows[0].get("reason")
    for row in rows:
        found = {name: row[name] for name in (*METRICS, "correct")}
        assert found == expected["dies"][row["die"]]
        assert {name: row[f"{name}_ideal"] for name in (*METRICS, "correct")} == expected["ideal"]
        assert row["token_period_s"] == expected["period"]


@pytest.mark.parametrize("point", [name for name in POINTS if name != "softmax"])
def test_row_is_that_of_a_point_loaded_alone(point: str, worker: Worker, fresh: Any, trained: RunResult) -> None:
    """The worker has visited whatever tests ran before this one."""
    dies = tuple(range(DIES.get(point, 1)))
    assert_as_fresh(worker(task_of(point, trained, dies)).rows, fresh(point))


def test_order_of_points_changes_nothing(fresh: Any, trained: RunResult) -> None:
    """A, B, A, and every pair of the points that leave most behind."""
    visited = ["as published", "calibrated readout", "as published", "two-step adaptation", "calibrated readout",
               "small window", "two-step adaptation", "as published", "no decay, no spread", "another number of codes",
               "as published"]  # fmt: skip
    worker = Worker()
    for point in visited:
        assert_as_fresh(worker(task_of(point, trained)).rows, fresh(point))


def test_model_without_scalers_of_its_own_is_placed_as_if_loaded(trained: RunResult, tmp_path: Path) -> None:
    """Scalers and ranges come from statistics on each device; such a model may be put on a softmax device too."""
    model = copied(SHIPPED, tmp_path / "model")
    (model / "gain_cell.safetensors").unlink()
    worker, adapter = Worker(), trained.folder / "adapter"
    expected: dict[str, dict[str, Any]] = {}
    for point in ("as published", "calibrated readout", "softmax", "as published", "softmax", "calibrated readout"):
        config = config_of(model=str(model), **POINTS[point])
        if point not in expected:
            expected[point] = load_alone(config, adapter)
        assert_as_fresh(worker(Task(0, 0, (0,), config, adapter)).rows, expected[point])


def test_points_differ(fresh: Any) -> None:
    """Equal rows would prove nothing if the device did nothing."""
    perplexities = {point: fresh(point)["dies"][0]["perplexity"] for point in POINTS if point != "softmax"}
    assert len(set(perplexities.values())) == len(perplexities)
    assert all(fresh(point)["dies"][0] != fresh(point)["dies"][1] for point in DIES)


def test_token_period_auto_is_the_latency_of_a_token(worker: Worker, trained: RunResult) -> None:
    """Without the adapter, as the closed form has it."""
    from hwsim.analytic import auto_token_period

    row = worker(task_of("token period auto", trained)).rows[0]
    model: Any = next(iter(worker._held.values())).bench.loaded.model
    expected = auto_token_period(model.config.to_dict(), load_device("gaincell_28nm"))
    assert row["token_period_s"] == pytest.approx(expected, rel=1e-12)


def test_first_chip_alone_is_the_first_of_several(worker: Worker, trained: RunResult) -> None:
    several = worker(task_of("as published", trained, (0, 1, 2))).rows
    assert [row["die"] for row in several] == [0, 1, 2]
    alone = [worker(task_of("as published", trained, (number,))).rows[0] for number in (2, 0, 1)]
    assert sorted(alone, key=lambda row: row["die"]) == several


def test_chips_beyond_those_that_are_kept(
    fresh: Any, trained: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(fllm.sweeps.bench, "MOST_DIES", 1)
    worker = Worker()
    for dies in ((0, 1), (1,), (0,)):
        assert_as_fresh(worker(task_of("as published", trained, dies)).rows, fresh("as published"))


def test_row_of_the_base_is_what_the_run_itself_reports(trained: RunResult) -> None:
    row, last = Worker()(task_of("as published", trained)).rows[0], trained.result["rounds"][-1]
    assert {name: row[name] for name in METRICS} == {name: last["hardware"][name]["mean"] for name in METRICS}
    assert {name: row[f"{name}_ideal"] for name in METRICS} == last["ideal"]


def test_row_has_every_column_but_those_of_the_plan(worker: Worker, trained: RunResult) -> None:
    row = worker(task_of("as published", trained)).rows[0]
    expected = {"point", "seed", "die", "status", "correct", "correct_ideal", *METRIC_COLUMNS, *FACTS, *CASES}
    assert set(row) == expected | {energy_column(part) for part in PARTS}
    assert (row["point"], row["seed"], row["die"]) == (7, 0, 0)
    assert len(row["correct"]) == len(row["correct_ideal"]) == trained.result["data"]["num_test"] / 4
    json.dumps(row, allow_nan=False)


def test_another_adapter_is_another_row(worker: Worker, trained: RunResult, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = trained.folder / "adapter" / "adapter_model.safetensors"
    save_file({name: 3 * tensor for name, tensor in load_file(file).items()}, tmp_path / file.name)
    task = task_of("as published", trained)
    first = worker(task).rows[0]
    other = worker(Task(7, 0, (0,), task.config, tmp_path)).rows[0]
    again = worker(task).rows[0]
    assert first == again
    assert other["perplexity_ideal"] != first["perplexity_ideal"]


# Failures.


def test_softmax_device_fails_alone(worker: Worker, fresh: Any, trained: RunResult) -> None:
    """The shipped model has hard-sigmoid scalers; the next point does not suffer from the attempt."""
    done = worker(task_of("softmax", trained))
    assert [row["status"] for row in done.rows] == ["failed"]
    assert done.rows[0]["die"] == 0
    assert "the model's range scalers are made for hard_sigmoid attention" in done.rows[0]["reason"]
    assert_as_fresh(worker(task_of("as published", trained)).rows, fresh("as published"))


class Broken(Exception):
    """An error of another library."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Broken(f"token {CANARY}\nis unknown"), "Broken in test_bench.py, line "),
        (KeyError(CANARY), "KeyError in test_bench.py, line "),
        (UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY), "UnicodeDecodeError in test_bench.py"),
        (ValueError(CANARY), "ValueError in test_bench.py, line "),
        (RuntimeError(f"{CANARY} " * 1000), "RuntimeError in test_bench.py, line "),
        (MemoryError(CANARY), "out of memory; fewer workers or a smaller batch_size may help"),
        (torch.OutOfMemoryError(CANARY), "out of memory; fewer workers or a smaller batch_size may help"),
        (InputError("too many refreshes", where="refresh.interval"), "refresh.interval: too many refreshes"),
        (RoundFailed("no client\nsent an update"), "no client sent an update"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_reason_of_a_failure_is_one_line_without_text_of_a_case(
    error: Exception, reason: str, worker: Worker, fresh: Any, trained: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        try:
            raise LookupError(CANARY)
        except LookupError:
            raise error  # noqa: B904 - the context must not come out either

    with monkeypatch.context() as patch:
        patch.setattr(fllm.sweeps.bench, "energy_facts", broken)
        done = worker(task_of("as published", trained, (0, 1)))
    assert [(row["point"], row["seed"], row["die"]) for row in done.rows] == [(7, 0, 0), (7, 0, 1)]
    assert all(row["reason"].startswith(reason) for row in done.rows)
    assert CANARY not in repr(done).lower()
    assert "\n" not in done.rows[0]["reason"]
    assert len(done.rows[0]["reason"]) < 200
    assert done.warnings == []


def test_failure_in_the_middle_of_a_pass_leaves_nothing_behind(
    fresh: Any, trained: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    worker(task_of("as published", trained))
    with monkeypatch.context() as patch:
        patch.setattr("fllm.evaluation.likelihood.cross_entropy", lambda *_, **__: 1 / 0)
        assert "ZeroDivisionError" in worker(task_of("two-step adaptation", trained)).rows[0]["reason"]
    with monkeypatch.context() as patch:
        patch.setattr("fllm.model.base.calibrate_readout", lambda *_, **__: 1 / 0)
        assert "ZeroDivisionError" in worker(task_of("calibrated readout", trained)).rows[0]["reason"]
    for point in ("as published", "calibrated readout"):
        assert_as_fresh(worker(task_of(point, trained)).rows, fresh(point))


def test_adapter_that_is_gone_is_named(worker: Worker, tmp_path: Path) -> None:
    done = worker(Task(0, 0, (0,), config_of(), tmp_path / "absent"))
    assert "absent: adapter cannot be read" in done.rows[0]["reason"]


def test_what_had_no_effect_is_said(worker: Worker, trained: RunResult) -> None:
    assert worker(task_of("as published", trained)).warnings == []
    config = config_of(**{"device.refresh.kind": "periodic", "device.refresh.interval": "1 s"})
    done = worker(Task(0, 0, (0,), config, trained.folder / "adapter"))
    assert len(done.warnings) == 1
    assert done.warnings[0].startswith("no effect of refresh: the oldest token is 0.0102 s old")


# Energy and age.


@pytest.fixture(scope="module")
def held(trained: RunResult) -> Iterator[Held]:
    """Return a model of its own, with prompts of different lengths: these tests put it on devices by hand."""
    torch.set_num_threads(1)
    made = Held.of(task_of("as published", trained))
    cut = [replace(prompt, tokens=prompt.tokens[: 32 - i**2 // 3]) for i, prompt in enumerate(made.held_out.test)]
    made.held_out = HeldOut(cut, [])
    yield made


def passed(held: Held, settings: dict[str, object]) -> tuple[DeviceModel, EventCounts]:
    """Count what answering the cases takes, pass by pass as a user would ask: the LM head once per case."""
    device = device_of(config_of(**settings))
    emulate(held.bench.model, device, token_period=1e-5)
    with count_events() as counts, torch.no_grad():
        for prompt in held.held_out.test:
            held.bench.model(input_ids=torch.tensor([prompt.tokens]), use_cache=False, logits_to_keep=1)
    return device, counts


def as_counted(counts: EventCounts) -> dict[str, Any]:
    events = {layer: {k: v for k, v in found.items() if v} for layer, found in counts.by_layer.items()}
    built = {"arrays": sum(counts.arrays.values()), "bits": sum(counts.weight_bits.values())}  # keys differ
    return built | {"tokens": counts.tokens, "events": events, "subtiles": counts.subtiles}


@pytest.mark.parametrize("point", ["as published", "small window", "refresh", "no decay, no spread", "other device"])
def test_priced_events_are_those_of_the_passes(point: str, held: Held) -> None:
    device, counts = passed(held, POINTS[point])
    assert as_counted(held._counts(device, 1e-5)) == as_counted(counts)
    assert counts.tokens == sum(len(prompt.tokens) for prompt in held.held_out.test)
    if point == "refresh":
        assert counts.events["attention.refresh_conversion"] > 0


def test_head_is_asked_once_per_case(held: Held) -> None:
    """Asked for every token it would cost as many times more as a prompt has tokens."""
    device = load_device("gaincell_28nm")
    config: Any = held.bench.loaded.model.config
    once = held._counts(device, 1e-5)
    every = EventCounts()
    for tokens, number in Counter(len(prompt.tokens) for prompt in held.held_out.test).items():
        every.add(analytic_events(config.to_dict(), device, tokens=tokens, batch=number, token_period_s=1e-5,
                                  adapter_rank=8))  # fmt: skip
    extra = every.events["digital.mac"] - once.events["digital.mac"]
    assert extra == (once.tokens - len(held.held_out.test)) * config.hidden_size * config.vocab_size


def test_model_of_an_unknown_family_is_counted(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    device = load_device("gaincell_28nm")
    known = as_counted(held._counts(device, 1e-5))
    emulate(held.bench.model, load_device("ideal"), token_period=1e-5)  # what the point before left it on

    def unknown(*_: object, **__: object) -> None:
        raise InputError("unknown family")

    monkeypatch.setattr(fllm.sweeps.bench, "model_shape", unknown)
    monkeypatch.delitem(held.__dict__, "_shape")
    assert as_counted(held._counts(device, 1e-5)) == known


def test_energy_of_a_row_is_that_of_the_passes(held: Held, trained: RunResult) -> None:
    device, counts = passed(held, {})
    facts = energy_facts(counts, device, token_period_s=1e-5, stored_heads=stored_heads(held.bench.model), seed=0)
    (row,), _ = held.rows(task_of("as published", trained))
    total = facts["energy_per_token_j"]
    assert row["energy_per_token_j"] == pytest.approx(total["nominal"], rel=1e-12, abs=0.0)
    ends = [row[f"energy_per_token_{end}_95_j"] for end in ("lower", "upper")]
    assert ends == pytest.approx([total["lower_95"], total["upper_95"]], rel=1e-12, abs=0.0)
    assert ends[0] < row["energy_per_token_j"] < ends[1]
    parts = {part: row[energy_column(part)] for part in PARTS}
    assert {part for part, energy in parts.items() if energy} <= set(facts["parts_j"])
    for part, found in facts["parts_j"].items():
        assert parts[part] == pytest.approx(found["nominal"], rel=1e-12, abs=0.0), part
    assert sum(parts.values()) == pytest.approx(row["energy_per_token_j"], rel=1e-9, abs=0.0)
    assert row["latency_per_token_s"] == pytest.approx(facts["latency_per_token_s"]["nominal"], rel=1e-12)
    assert row["area_m2"] == pytest.approx(facts["area_m2"]["total"]["nominal"], rel=1e-12)


def ages(held: Held, **settings: object) -> tuple[float, float, float]:
    """Return the age of the first token of a prompt, and what is left of the signal then and in a full window."""
    config = config_of(**settings)
    device = device_of(config)
    period = None if not device.decays else parse_quantity(config.token_period, "s")
    facts = held._facts(config, device, period)
    return facts["oldest_age_s"], facts["signal_left"], facts["window_signal_left"]


def test_signal_left_by_the_exponential_law(held: Held) -> None:
    device = {"device.retention.tau": "2 ms", "device.window.tokens": 256}
    oldest, left, window = ages(held, token_period="5 us", **device)
    lengths = sorted(len(prompt.tokens) for prompt in held.held_out.test)
    assert lengths[0] < lengths[4] < lengths[-1]
    assert oldest == pytest.approx((lengths[len(lengths) // 2] - 1) * 5e-6, rel=1e-12)
    assert left == pytest.approx(math.exp(-oldest / 2e-3), rel=1e-12)
    assert window == pytest.approx(math.exp(-255 * 5e-6 / 2e-3), rel=1e-12)


def test_prompt_is_never_older_than_the_window(held: Held) -> None:
    oldest, left, window = ages(held, **POINTS["small window"])
    assert oldest == pytest.approx(15 * 4e-5, rel=1e-12)
    assert left == window


def test_signal_left_of_a_device_without_decay(held: Held) -> None:
    assert ages(held, **POINTS["no decay, no spread"]) == (0.0, 1.0, 1.0)


def test_signal_left_between_refreshes(held: Held) -> None:
    """No value is ever older than the interval of 0.2 ms."""
    oldest, left, window = ages(held, **POINTS["refresh"])
    assert oldest > 2e-4
    assert left == window == pytest.approx(math.exp(-0.2 / 5), rel=1e-12)


def test_signal_left_by_the_logarithmic_law() -> None:
    """It is counted from the level that cells relax to, at the end of the range that has lost the larger share."""
    device = load_device("gaincell_28nm_logic")
    law, storage = device.retention, device.storage
    assert law.kind == "log_self_limited" and law.v_inf is not None
    for age in (0.0, 1e-5, 1e-3, 1.0):
        shares = []
        for end in (storage.v_min, storage.v_max):
            if end != law.v_inf:
                now = float(stored_voltage(end, age, law, temperature=device.operation.temperature))
                shares.append((now - law.v_inf) / (end - law.v_inf))
        assert signal_left(device, age) == pytest.approx(min(shares), rel=1e-12)
    assert signal_left(device, 0.0) == 1.0
    left = [signal_left(device, age) for age in np.geomspace(1e-6, 1e3, 20)]
    assert left == sorted(left, reverse=True)
    assert 0.0 <= left[-1] < left[0]


def test_signal_left_follows_the_temperature() -> None:
    cold, warm = (load_device("gaincell_28nm", {"operation.temperature": t}) for t in ("280 K", "340 K"))
    assert signal_left(warm, 1e-3) < signal_left(load_device("gaincell_28nm"), 1e-3) < signal_left(cold, 1e-3)
