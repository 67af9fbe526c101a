"""What a worker of a sweep does: put one trained adapter on one device and score it on some chips.

Model and cases are loaded once per worker and kept from point to point; a device changes in place.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from device_models import DeviceModel, InputError
from device_models.costs import PARTS
from device_models.retention import signal_left
from fllm.accounting import stored_heads
from fllm.cases import load_cases
from fllm.config import RunConfig
from fllm.energy import energy_facts
from fllm.evaluation import METRICS, Scores
from fllm.federation.server_app import RoundFailed
from fllm.model.adapters import load_adapter, read_adapter, whole_adapter
from fllm.model.base import place
from fllm.preparation import Bench, HeldOut, device_of, evaluation_die, ideal_twin, load_bench, token_period_of
from fllm.runs import run_or_resume
from fllm.sweeps.record import warnings_of
from fllm.sweeps.table import OK, bits, energy_column
from fllm.sweeps.tasks import Done, Task, failed
from hwsim import Die, EventCounts, count_events, emulate
from hwsim.analytic import analytic_events
from hwsim.shapes import ModelShape, model_shape

MOST_DIES = 32
"""Chips whose deviates are kept."""
_NONE = {"nominal": 0.0}
_PLACED = ("device_model", "token_period", "adaptation", "dies")
"""What a device is put on a loaded model with."""


class Worker:
    """Does tasks, one after another, keeping what it loaded for the last ones."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}

    def __call__(self, task: Task) -> Done:
        """Do a task; a failure becomes a row, so that the other points go on."""
        torch.set_num_threads(1)
        try:
            if task.train is not None:
                run_or_resume(task.config, task.train, command="a point of fllm sweep --mode train")
            rows, warnings = self._on(task).rows(task)
            place_in_table = {"point": task.point, "seed": task.seed, "status": OK}
            return Done(task, [place_in_table | row for row in rows], warnings)
        except Exception as error:  # whatever a setting breaks, it is this point's result
            return failed(task, _reason(error))

    def _on(self, task: Task) -> Held:
        key = json.dumps(
            [str(task.adapter), task.config.model_dump(mode="json", exclude={"device", *_PLACED})], sort_keys=True
        )
        if key not in self._held:
            self._held.clear()  # one model at a time: the points of a seed come one after another
            self._held[key] = Held.of(task)
        return self._held[key]


def _reason(error: Exception) -> str:
    """Say in one line why a point failed; of errors that are not ours only where, as their text may quote a note."""
    if isinstance(error, InputError | RoundFailed):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out of memory; fewer workers or a smaller batch_size may help"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"


def digest_of_cases(config: RunConfig, cohort_sha256: str) -> str:
    """Return 12 digits that are equal for the same test cases in the same order."""
    cut = (config.split, config.test_fraction, config.num_folds, config.fold)
    return hashlib.sha256(repr((cohort_sha256, config.seed, cut)).encode()).hexdigest()[:12]


class Held:
    """One seed's model, adapter and test cases."""

    def __init__(self, bench: Bench, held_out: HeldOut, cases_sha256: str) -> None:
        self.bench, self.held_out, self.cases_sha256 = bench, held_out, cases_sha256
        self._adapter = whole_adapter(bench.model)
        self._ideal: dict[str, Scores] = {}
        self._dies: dict[int, Die] = {}

    @classmethod
    def of(cls, task: Task) -> Held:
        """Load what a task needs."""
        cases = load_cases(task.config)
        bench = load_bench(task.config, cases.corpus.task, device_of(task.config))
        if task.model_sha256 not in (None, bench.loaded.sha256):
            raise InputError("the base model changed since the adapter was trained", where=bench.loaded.name)
        load_adapter(bench.model, read_adapter(task.adapter), task.adapter)
        encoded = bench.encode([*cases.split.test, *cases.split.validation])
        held_out = HeldOut(encoded.of(cases.split.test), encoded.of(cases.split.validation))
        return cls(bench, held_out, digest_of_cases(task.config, cases.corpus.sha256))

    def rows(self, task: Task) -> tuple[list[dict[str, Any]], list[str]]:
        """Score the task's chips; the metrics of each, and what of the device had no effect."""
        device = device_of(task.config)
        with self.bench.model.disable_adapter():
            placing = place(self.bench.loaded, device, token_period_of(task.config), task.config.adaptation)
        load_adapter(self.bench.model, self._adapter, task.adapter)  # its range scalers, where it has some
        period = placing.token_period_s
        ideal = self._on_ideal(device, period)
        shared = self._facts(task.config, device, period) | {
            **{f"{name}_ideal": getattr(ideal, name) for name in METRICS},
            "correct_ideal": bits(ideal.correct),
            "test_cases": len(self.held_out.test),
            "cases_sha256": self.cases_sha256,
        }
        rows = []
        for number in task.dies:
            found = self.bench.score(self.held_out, device, self._die(number, task.config, device), period)
            metrics = {name: getattr(found, name) for name in METRICS}
            rows.append(shared | metrics | {"die": number, "correct": bits(found.correct)})
        return rows, warnings_of(device, shared)

    def _die(self, number: int, config: RunConfig, device: DeviceModel) -> Die:
        """Return a chip; its deviates are drawn once and serve every point."""
        if number not in self._dies:
            if len(self._dies) >= MOST_DIES:
                self._dies.clear()
            self._dies[number] = evaluation_die(config, device, number)
        return self._dies[number].on(device)

    def _on_ideal(self, device: DeviceModel, period: float | None) -> Scores:
        """Score on the ideal device; most points share it."""
        twin = ideal_twin(device)
        scalers = {n: t.tolist() for n, t in self.bench.loaded.model.state_dict().items() if ".gain_cell." in n}
        key = repr((twin.window, twin.activation, twin.saturation, twin.cell, scalers))
        if key not in self._ideal:
            self._ideal[key] = self.bench.score(self.held_out, twin, None, period)
        return self._ideal[key]

    def _facts(self, config: RunConfig, device: DeviceModel, period: float | None) -> dict[str, Any]:
        """Price a token of the test prompts, and say how old the stored values grow."""
        counts = self._counts(device, period)
        energy = energy_facts(
            counts, device, token_period_s=period, stored_heads=stored_heads(self.bench.model), seed=config.seed
        )
        total = energy["energy_per_token_j"]
        lengths = sorted(len(prompt.tokens) for prompt in self.held_out.test)
        oldest = (min(lengths[len(lengths) // 2], device.window.tokens) - 1) * (period or 0.0)
        full = (device.window.tokens - 1) * (period or 0.0)
        return {
            "energy_per_token_j": total["nominal"],
            "energy_per_token_lower_95_j": total["lower_95"],
            "energy_per_token_upper_95_j": total["upper_95"],
            **{energy_column(part): energy["parts_j"].get(part, _NONE)["nominal"] for part in PARTS},
            "latency_per_token_s": energy["latency_per_token_s"]["nominal"],
            "area_m2": energy["area_m2"]["total"]["nominal"],
            "token_period_s": period,
            "oldest_age_s": oldest,
            "signal_left": signal_left(device, oldest),
            "window_signal_left": signal_left(device, full),
        }

    def _counts(self, device: DeviceModel, period: float | None) -> EventCounts:
        """Count what answering the test cases takes: each prompt through the model, the LM head asked at its end."""
        total = EventCounts()
        for tokens, prompts in sorted(Counter(len(prompt.tokens) for prompt in self.held_out.test).items()):
            if self._shape is None or self.bench.config.lora.targets:  # analytic: an adapter beside every layer
                total.add(self._counted(tokens, prompts, device, period))
                continue
            total.add(
                analytic_events(
                    self._shape, device, tokens=tokens, batch=prompts, token_period_s=period,
                    adapter_rank=self.bench.config.lora.r, head_tokens=1,
                )
            )  # fmt: skip
        return total

    @cached_property
    def _shape(self) -> ModelShape | None:
        """Sizes of the model; None of a family whose sizes are not known, whose passes are counted instead."""
        config: Any = self.bench.loaded.model.config
        try:
            return model_shape(config.to_dict())
        except InputError:
            return None

    def _counted(self, tokens: int, prompts: int, device: DeviceModel, period: float | None) -> EventCounts:
        emulate(self.bench.model, device, die_seed=None, token_period=period)
        batch = torch.full((prompts, tokens), self.bench.pad_id)
        with count_events() as counts, torch.no_grad():
            self.bench.model(input_ids=batch, use_cache=False, logits_to_keep=1)
        return counts
