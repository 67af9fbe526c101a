"""Everything before the first round: device, cohort, clients, model, prompts, baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from fllm.evaluation import Prompt
from fllm.federation.task import Hospital, LocalTraining
from fllm.model.adapters import attach_adapter
from fllm.model.base import LoadedModel, load_model, model_facts
from fllm.observer import Observer
from fllm.record import NOT_MODELLED, assumptions, data_facts, device_facts, environment, network_facts, sources
from fllm.results import SCHEMA_VERSION
from hwsim import BitLinear, Die, EventCounts, count_events, emulate, gain_cell_layers
from hwsim.effects import idle_effects
from hwsim.randomness import seed_of


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything a run needs before its first round."""

    config: RunConfig
    device: DeviceModel
    ideal: DeviceModel
    model: PeftModel
    answers: list[list[int]]
    pad_id: int
    test: list[Prompt]
    hospitals: list[Hospital]
    record: dict[str, Any]
    period_s: float | None
    dies: list[Die]
    built: EventCounts
    network: Network


def prepare(config: RunConfig, observer: Observer) -> Prepared:
    """Load device, cohort and model, cut the cohort into clients, and score the baselines."""
    torch.set_num_threads(config.threads)
    device = load_device(config.device_model, config.device)
    network = load_network(config.network)
    if device.readout.range == "learned":
        raise InputError(
            "a run trains adapters alone, so nothing learns the range of the readout",
            where=f"{device.name}: readout.range", expected="fixed or calibrated", received="learned",
            remedy="--set device.readout.range=calibrated",
        )  # fmt: skip
    ideal = _ideal_twin(device)
    observer.stage("reading the cohort")
    cohort = _cohort(config)
    split = split_cases(cohort.cases, test_fraction=config.test_fraction, seed=config.seed)
    clients = partition_by_hospital(split.train, config.num_clients, seed=config.seed)
    observer.stage("loading the model")
    sample = [build_note(case, config.fields) for case in load_synthetic(40, n_hospitals=4, seed=1).cases[:16]]
    period = "auto" if config.token_period == "auto" else parse_quantity(config.token_period, "s")
    loaded = load_model(config.model, device, period, sample, config.adaptation)
    facts = model_facts(loaded)
    answers = _answers(loaded)
    prompts = {case.hadm_id: _prompt(loaded, case, config, answers) for case in cohort.cases}
    model = attach_adapter(loaded.model, config.lora, base_name=loaded.name, seed=config.seed)
    facts["adapter_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts["ternary_weights"] = sum(m.weight.numel() for m in model.modules() if isinstance(m, BitLinear))
    observer.stage("scoring the baselines")
    training = LocalTraining(
        config.local_steps, config.batch_size, config.learning_rate, config.note_loss, config.num_rounds, config.seed
    )
    pad_id = _pad_id(loaded)
    period_s = gain_cell_layers(model)[0].token_period_s
    chips = [Die(seed_of(config.seed, "hospital's chip", index), device) for index in range(len(clients))]
    hospitals = [
        Hospital(
            index, [prompts[case.hadm_id] for case in cases], model, answers, pad_id, training,
            partial(emulate, model, device, die_seed=chip, token_period=period_s),
        )
        for index, ((_, cases), chip) in enumerate(zip(clients, chips, strict=True))
    ]  # fmt: skip
    dies = [Die(seed_of(config.seed, "die of evaluation", index), device) for index in range(config.dies)]
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
        "data": data_facts(config, cohort, split.train, split.test, clients, list(prompts.values())),
        "model": facts,
        "device": device_facts(device, config, period_s),
        "baselines": baselines(split.train, split.test, config.fields),
        "sources": sources(device, network),
        "assumptions": assumptions(device, config),
        "network": network_facts(network),
        "not_modelled": list(NOT_MODELLED),
        "warnings": [f"no effect of {name}: {reason}" for name, reason in idle.items()],
        "rounds": [],
        "final": None,
    }
    test = [prompts[case.hadm_id] for case in split.test]
    built = _one_token(model, pad_id)
    return Prepared(
        config, device, ideal, model, answers, pad_id, test, hospitals, record, period_s, dies, built, network
    )


def _one_token(model: PeftModel, pad_id: int) -> EventCounts:
    """Count one token, to learn what hardware the model takes."""
    with count_events() as counts, torch.no_grad():
        model(input_ids=torch.full((1, 1), pad_id), use_cache=False)
    return counts


def _ideal_twin(device: DeviceModel) -> DeviceModel:
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


def _answers(loaded: LoadedModel) -> list[list[int]]:
    return [loaded.tokenizer(answer(name), add_special_tokens=False)["input_ids"] for name in DIAGNOSES]


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
