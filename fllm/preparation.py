"""Everything before the first round: device, cohort, clients, model, prompts, baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel

from device_models import DeviceModel, InputError, load_device, parse_quantity
from device_models.machines import Network, load_network
from fllm.baselines import baselines
from fllm.config import RunConfig
from fllm.data import (
    DIAGNOSES,
    Case,
    Cohort,
    answer,
    build_note,
    load_cohort,
    load_synthetic,
    partition_by_hospital,
    split_cases,
)
from fllm.evaluation import Prompt, Scores, evaluate
from fllm.federation.task import Hospital, LocalTraining
from fllm.model.adapters import attach_adapter
from fllm.model.base import LoadedModel, load_model, model_facts
from fllm.observer import Observer
from fllm.record import NOT_MODELLED, assumptions, data_facts, device_facts, environment, network_facts, sources
from fllm.results import SCHEMA_VERSION
from hwsim import BitLinear, Die, EventCounts, count_events, emulate
from hwsim.effects import idle_effects
from hwsim.randomness import seed_of


@dataclass(frozen=True)
class Cases:
    """A cohort, cut into training and test cases and the former into clients."""

    cohort: Cohort = field(repr=False)
    train: tuple[Case, ...] = field(repr=False)
    test: tuple[Case, ...] = field(repr=False)
    clients: list[tuple[str, tuple[Case, ...]]] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with its adapter on a device, and how cases are put to it."""

    config: RunConfig
    loaded: LoadedModel
    model: PeftModel
    answers: list[list[int]]
    pad_id: int
    facts: dict[str, object]

    def prompts(self, cases: Sequence[Case]) -> list[Prompt]:
        """Return cases as token ids."""
        return [_prompt(self.loaded, case, self.config, self.answers) for case in cases]

    def score(
        self, test: Sequence[Prompt], device: DeviceModel, die: Die | None, token_period_s: float | None
    ) -> Scores:
        """Score test cases on one chip of a device; None is the device as designed."""
        emulate(self.model, device, die_seed=die, token_period=token_period_s)
        batch, seed = 4 * self.config.batch_size, self.config.seed
        return evaluate(self.model, test, self.answers, batch, self.pad_id, seed)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything a run needs before its first round."""

    config: RunConfig
    device: DeviceModel
    ideal: DeviceModel
    bench: Bench
    test: list[Prompt]
    hospitals: list[Hospital]
    record: dict[str, Any]
    period_s: float | None
    dies: list[Die]
    built: EventCounts
    network: Network

    @property
    def model(self) -> PeftModel:
        """The model with its adapter; all clients of this process share it."""
        return self.bench.model


def prepare(config: RunConfig, observer: Observer) -> Prepared:
    """Load device, cohort and model, cut the cohort into clients, and score the baselines."""
    torch.set_num_threads(config.threads)
    device = device_of(config)
    network = load_network(config.network)
    observer.stage("reading the cohort")
    cases = load_cases(config)
    observer.stage("loading the model")
    bench = load_bench(config, device)
    prompts = bench.prompts(cases.cohort.cases)
    of_case = {case.hadm_id: prompt for case, prompt in zip(cases.cohort.cases, prompts, strict=True)}
    observer.stage("scoring the baselines")
    period_s = bench.loaded.placing.token_period_s
    chips = [Die(seed_of(config.seed, "hospital's chip", index), device) for index in range(len(cases.clients))]
    dies = [evaluation_die(config, device, number) for number in range(config.dies)]
    idle = idle_effects(device, die=True, noise=True, token_period_s=period_s)
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "config": config.model_dump(mode="json"),
        "seeds": {
            "run": config.seed,
            "cohort": config.seed,
            "client_dies": [chip.seed for chip in chips],
            "evaluation_dies": [die.seed for die in dies],
        },
        "environment": environment(config),
        "data": data_facts(config, cases.cohort, cases.train, cases.test, cases.clients, prompts),
        "model": bench.facts,
        "device": device_facts(device, config, period_s),
        "baselines": baselines(cases.train, cases.test, config.fields),
        "sources": sources(device, network),
        "assumptions": assumptions(device, config),
        "network": network_facts(network),
        "not_modelled": list(NOT_MODELLED),
        "warnings": [f"no effect of {name}: {reason}" for name, reason in idle.items()],
        "rounds": [],
        "final": None,
    }
    test = [of_case[case.hadm_id] for case in cases.test]
    built = _one_token(bench.model, bench.pad_id)
    hospitals = _hospitals(bench, device, cases, of_case, chips)
    return Prepared(
        config, device, ideal_twin(device), bench, test, hospitals, record, period_s, dies, built, network
    )  # fmt: skip


def device_of(config: RunConfig) -> DeviceModel:
    """Load the device of a run; raises InputError, also for one that only training of the base model could use."""
    device = load_device(config.device_model, config.device)
    if device.readout.range == "learned":
        raise InputError(
            "a run trains adapters alone, so nothing learns the range of the readout",
            where=f"{device.name}: readout.range", expected="fixed or calibrated", received="learned",
            remedy="--set device.readout.range=calibrated",
        )  # fmt: skip
    return device


def load_cases(config: RunConfig) -> Cases:
    """Read or make up the cohort, hold out the test cases, and deal the others to the clients."""
    cohort = _cohort(config)
    split = split_cases(cohort.cases, test_fraction=config.test_fraction, seed=config.seed)
    clients = partition_by_hospital(split.train, config.num_clients, seed=config.seed)
    return Cases(cohort, split.train, split.test, clients)


def load_bench(config: RunConfig, device: DeviceModel) -> Bench:
    """Load the model on a device and attach a new adapter."""
    sample = [build_note(case, config.fields) for case in load_synthetic(40, n_hospitals=4, seed=1).cases[:16]]
    loaded = load_model(config.model, device, token_period_of(config), sample, config.adaptation)
    answers = [loaded.tokenizer(answer(name), add_special_tokens=False)["input_ids"] for name in DIAGNOSES]
    facts = model_facts(loaded)
    model = attach_adapter(loaded.model, config.lora, base_name=loaded.name, seed=config.seed)
    facts["adapter_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts["ternary_weights"] = sum(m.weight.numel() for m in model.modules() if isinstance(m, BitLinear))
    return Bench(config, loaded, model, answers, _pad_id(loaded), facts)


def token_period_of(config: RunConfig) -> float | str:
    """Return the time between two tokens [s], or ``"auto"``."""
    return "auto" if config.token_period == "auto" else parse_quantity(config.token_period, "s")


def evaluation_die(config: RunConfig, device: DeviceModel, number: int) -> Die:
    """Return one of the chips that a run's model is evaluated on; none of them is a hospital's."""
    return Die(seed_of(config.seed, "die of evaluation", number), device)


def _hospitals(
    bench: Bench, device: DeviceModel, cases: Cases, prompts: Mapping[int, Prompt], chips: Sequence[Die]
) -> list[Hospital]:
    config, period_s = bench.config, bench.loaded.placing.token_period_s
    training = LocalTraining(
        config.local_steps, config.batch_size, config.learning_rate, config.note_loss, config.num_rounds, config.seed
    )
    return [
        Hospital(
            index, [prompts[case.hadm_id] for case in own], bench.model, bench.answers, bench.pad_id, training,
            partial(emulate, bench.model, device, die_seed=chip, token_period=period_s),
        )
        for index, ((_, own), chip) in enumerate(zip(cases.clients, chips, strict=True))
    ]  # fmt: skip


def _one_token(model: PeftModel, pad_id: int) -> EventCounts:
    """Count one token, to learn what hardware the model takes."""
    with count_events() as counts, torch.no_grad():
        model(input_ids=torch.full((1, 1), pad_id), use_cache=False)
    return counts


def ideal_twin(device: DeviceModel) -> DeviceModel:
    """Return the ideal device with this one's window, and with its activation, which the model was made for."""
    ideal = load_device("ideal", {"window.tokens": device.window.tokens})
    if device.activation.kind == "softmax":  # scalers and logits are calibrated to the device's currents
        continuous = replace(device.activation, levels=None)
        return replace(ideal, activation=continuous, saturation=device.saturation, cell=device.cell)
    return ideal


def _cohort(config: RunConfig) -> Cohort:
    if config.data_dir is not None:
        return load_cohort(config.data_dir)
    hospitals = config.num_hospitals or config.num_clients
    if hospitals > config.num_cases:
        raise InputError(
            "more hospitals than cases", where="num_clients", expected=f"at most {config.num_cases}", received=hospitals
        )
    return load_synthetic(
        config.num_cases, n_hospitals=hospitals, seed=config.seed, label_concentration=config.label_concentration
    )


def _pad_id(loaded: LoadedModel) -> int:
    tokenizer = loaded.tokenizer
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if found is None else int(found)


def _prompt(loaded: LoadedModel, case: Case, config: RunConfig, answers: Sequence[Sequence[int]]) -> Prompt:
    """Encode a note; one that is too long loses text in its middle, never the cue for the answer at its end."""
    tokenizer = loaded.tokenizer
    start = tokenizer.bos_token_id
    tokens = ([] if start is None else [start]) + tokenizer(
        build_note(case, config.fields), add_special_tokens=False
    )["input_ids"]  # fmt: skip
    limit = getattr(loaded.model.config, "max_position_embeddings", None) or config.max_tokens
    room = min(config.max_tokens, limit - max(len(a) for a in answers))
    if room < 8:
        raise InputError(
            "the model's context is too short", where=loaded.name, expected="8 tokens or more", received=room
        )
    kept = tokens if len(tokens) <= room else [*tokens[: room - room // 2], *tokens[-(room // 2) :]]
    return Prompt(tuple(kept), DIAGNOSES.index(case.diagnosis), len(tokens) > room)
