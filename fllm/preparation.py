"""Everything before the first round: device, cases, model, prompts, baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from device_models import DeviceModel, InputError, load_device, parse_quantity
from device_models.machines import Network, load_network
from fllm.baselines import baselines, language_baselines
from fllm.cases import Cases, load_cases
from fllm.client_chips import ClientChips, deal_devices
from fllm.config import RunConfig, threads_of
from fllm.data import build_note, load_synthetic
from fllm.data.budget import TokenBudget
from fllm.data.corpus import Example, Task, answer_text
from fllm.energy import cost_sources
from fllm.evaluation import Prompt, Scores, evaluate
from fllm.federation.privacy import PrivacyTerms, check_extra
from fllm.federation.privacy_noise import noise_source
from fllm.federation.privacy_record import GradientPrivacy, PrivateHospital
from fllm.federation.task import Hospital, LocalTraining
from fllm.model.adapters import adapter_digest, attach_adapter, get_adapter, load_adapter, read_adapter
from fllm.model.base import LoadedModel, load_model, model_facts
from fllm.model.identity import (
    AdapterIdentity,
    BaseIdentity,
    DeviceIdentity,
    adapter_folder,
    read_identity,
    with_settings_of_adapter,
)
from fllm.observer import Observer
from fllm.prompting import Encoded, encode
from fllm.record import NOT_MODELLED, assumptions, data_facts, device_facts, environment, network_facts, sources
from fllm.results import SCHEMA_VERSION
from hwsim import Die, EventCounts, count_events, emulate, native
from hwsim.effects import idle_effects
from hwsim.randomness import seed_of


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What no client trains on: test prompts, and validation prompts that a temperature is fitted on."""

    test: list[Prompt]
    validation: list[Prompt]


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with its adapter on a device, and how examples are put to it."""

    config: RunConfig
    task: Task
    loaded: LoadedModel
    model: PeftModel
    answers: list[list[int]]
    pad_id: int
    facts: dict[str, object]
    origin: dict[str, Any] | None = None
    """The adapter that was started from: its digest, and what it was trained on; None for a new one."""

    @cached_property
    def built(self) -> EventCounts:
        """Counts of one token on the device that the model is on, which tell what hardware it takes."""
        with count_events() as counts, torch.no_grad():
            self.model(input_ids=torch.full((1, 1), self.pad_id), use_cache=False)
        return counts

    def encode(self, examples: Sequence[Example]) -> Encoded:
        """Return examples as token ids."""
        return encode(examples, self.task, self.loaded.tokenizer, self._budget(self.config.field_tokens))

    def _budget(self, fields: Mapping[str, int]) -> TokenBudget:
        longest = max(map(len, self.answers), default=0)
        limit = getattr(self.loaded.model.config, "max_position_embeddings", None) or self.config.max_tokens + longest
        return TokenBudget(min(self.config.max_tokens, limit - longest), fields, where=self.loaded.name)

    def score(self, held_out: HeldOut, device: DeviceModel, die: Die | None, token_period_s: float | None) -> Scores:
        """Score the test prompts on one chip of a device; None is the device as designed."""
        emulate(self.model, device, die_seed=die, token_period=token_period_s)
        scores = self._likelihoods(held_out.test)
        if self.config.calibration == "content_free":
            return scores.without_content(self._likelihoods([self._cue()]))
        if self.config.calibration == "temperature":
            return scores.at_fitted_temperature(self._likelihoods(held_out.validation))
        return scores

    def _likelihoods(self, prompts: Sequence[Prompt]) -> Scores:
        batch, seed = 4 * self.config.batch_size, self.config.seed
        return evaluate(self.model, prompts, self.answers, batch, self.pad_id, seed)

    def _cue(self) -> Prompt:
        """Return a prompt without content: the cue alone."""
        return encode([Example(0, (), 0)], self.task, self.loaded.tokenizer, self._budget({})).prompts[0][0]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything a run needs before its first round."""

    config: RunConfig
    device: DeviceModel
    ideal: DeviceModel
    cases: Cases
    encoded: Encoded
    bench: Bench
    held_out: HeldOut
    hospitals: list[Hospital]
    first_adapter: Mapping[str, Tensor]
    record: dict[str, Any]
    period_s: float | None
    dies: list[Die]
    built: EventCounts
    network: Network
    chips: ClientChips

    @property
    def model(self) -> PeftModel:
        """The model with its adapter; all clients of this process share it."""
        return self.bench.model

    @property
    def sizes(self) -> list[int]:
        """Training prompts of each client."""
        return [len(hospital.prompts) for hospital in self.hospitals]

    @property
    def client_of_test(self) -> list[int]:
        """Client that each test prompt belongs to, as an index."""
        owner = {example.key: index for index, client in enumerate(self.cases.clients) for example in client.test}
        return [owner[e.key] for e in self.cases.split.test for _ in self.encoded.prompts[e.key]]


def prepare(config: RunConfig, observer: Observer) -> Prepared:
    """Load device, cases and model, write the prompts, and score the baselines."""
    torch.set_num_threads(threads_of(config))
    check_extra(config.privacy)
    config = with_settings_of_adapter(config)
    device = device_of(config)
    devices = deal_devices(config, device, partial(device_of, config))
    network = load_network(config.network)
    observer.stage("reading the cases")
    cases = load_cases(config)
    if native.compiles_at_first_use():
        observer.stage("compiling kernels, once on this machine")
        native.available()
    observer.stage("loading the model")
    bench = load_bench(config, cases.corpus.task, device)
    observer.stage("writing the prompts")
    encoded = bench.encode(cases.corpus.examples)
    _check_prompts(cases, encoded)
    privacy_of(config, [len(encoded.of(client.train)) for client in cases.clients]).check()
    observer.stage("scoring the baselines")
    period_s = bench.loaded.placing.token_period_s
    dies = [evaluation_die(config, device, number) for number in range(config.dies)]
    idle = idle_effects(device, die=True, noise=True, token_period_s=period_s)
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "config": config.model_dump(mode="json"),
        "seeds": {
            "run": config.seed,
            "cohort": config.seed,
            "client_dies": own_chips(config, device, len(cases.clients)),
            "evaluation_dies": [die.seed for die in dies],
        },
        "environment": environment(config),
        "task": {"kind": bench.task.kind, "classes": list(bench.task.classes), "cue": bench.task.cue},
        "data": data_facts(config, cases, encoded),
        "model": bench.facts,
        "device": device_facts(device, config, period_s),
        "baselines": _baselines(cases, encoded, config, len(bench.loaded.tokenizer)),
        "sources": sources(device, network),
        "assumptions": assumptions(device, config),
        "network": network_facts(network),
        "not_modelled": list(NOT_MODELLED),
        "warnings": [f"no effect of {name}: {reason}" for name, reason in idle.items()],
        "rounds": [],
        "final": None,
    }
    if bench.origin is not None:
        record["adapter"] = bench.origin
    if config.evaluate_only:
        del record["network"]  # nothing is sent
    held_out = HeldOut(encoded.of(cases.split.test), encoded.of(cases.split.validation))
    chips = _chips(config, cases.corpus.task, devices, {id(device): bench})
    hospitals = _hospitals(config, cases, encoded, chips)
    if chips.mixed:
        record |= _facts_of_devices(chips, record)
    return Prepared(
        config, device, ideal_twin(device), cases, encoded, bench, held_out, hospitals, get_adapter(bench.model),
        record, period_s, dies, bench.built, network, chips,
    )  # fmt: skip


def _chips(
    config: RunConfig, task: Task, devices: Sequence[DeviceModel], loaded: dict[int, Bench] | None = None
) -> ClientChips:
    """Return what clients work on; benches that are loaded already are those of devices by their id."""

    def load(device: DeviceModel) -> Bench:
        return (loaded or {}).get(id(device)) or load_bench(config, task, device)

    return ClientChips(config, devices, load, partial(training_die, config))


def _hospitals(config: RunConfig, cases: Cases, encoded: Encoded, chips: ClientChips) -> list[Hospital]:
    training = _local_training(config)
    return [
        make_hospital(index, encoded.of(client.train), chips.bench(index), chips.device(index), training, chips.die)
        for index, client in enumerate(cases.clients)
    ]


def _facts_of_devices(chips: ClientChips, record: Mapping[str, Any]) -> dict[str, Any]:
    """Describe clients' devices for a record, with the sources of their numbers and what of them has no effect."""
    cited, warnings = dict(record["sources"]), list(record["warnings"])
    for device, clients in chips.kinds():
        cited |= cost_sources(device)
        period_s = chips.bench(clients[0]).loaded.placing.token_period_s
        idle = idle_effects(device, die=True, noise=True, token_period_s=period_s)
        warnings += [f"no effect of {name} on {device.name}: {reason}" for name, reason in idle.items()]
    return {"client_devices": chips.facts(), "sources": cited, "warnings": list(dict.fromkeys(warnings))}


def privacy_of(config: RunConfig, sizes: Sequence[int]) -> PrivacyTerms:
    """Return what the privacy of a run follows from.

    Args:
        config: The run.
        sizes: Cases of each client.
    """
    return PrivacyTerms(
        config.privacy, config.num_clients, config.asked, tuple(sizes), config.batch_size, config.local_steps,
        config.seed,
    )  # fmt: skip


def _of_gradients(config: RunConfig) -> GradientPrivacy | None:
    """Return how clients keep their cases private, if they do so themselves."""
    settings = config.privacy
    if settings.kind != "record":
        return None
    return GradientPrivacy(settings.noise_multiplier, settings.clipping_norm, noise_source(settings, config.seed))


def load_hospitals(config: RunConfig) -> tuple[list[Hospital], dict[str, Tensor]]:
    """Load the clients of a run and no more, in a process that only trains.

    Returns:
        The clients, and the adapter that each begins with.
    """
    config = with_settings_of_adapter(config)
    device, cases = device_of(config), load_cases(config)
    chips = _chips(config, cases.corpus.task, deal_devices(config, device, partial(device_of, config)))
    encoded = chips.bench(0).encode([example for client in cases.clients for example in client.train])
    return _hospitals(config, cases, encoded, chips), get_adapter(chips.bench(0).model)


def load_hospital(config: RunConfig, partition: int, *, own_cases: bool) -> tuple[Hospital, dict[str, Tensor], str]:
    """Load one client of a run and no more, in a process that trains that one alone.

    Args:
        config: The run.
        partition: The client.
        own_cases: The cases that the run reads are all this client's; else it takes its part of them.

    Returns:
        The client, the adapter that it begins with, and the digest of the base model.
    """
    check_extra(config.privacy)
    config = with_settings_of_adapter(config)
    alone = config.model_copy(update={"num_clients": 1, "partition": "iid"})
    device, cases = device_of(config), load_cases(alone if own_cases else config)
    client = cases.clients[0 if own_cases else partition]
    chips = _chips(config, cases.corpus.task, deal_devices(config, device, partial(device_of, config)))
    bench = chips.bench(partition)
    prompts = bench.encode(client.train).of(client.train)
    if not prompts:
        raise InputError("no text of two tokens or more", where=cases.corpus.source, remedy="bring longer texts")
    hospital = make_hospital(partition, prompts, bench, chips.device(partition), _local_training(config), chips.die)
    return hospital, get_adapter(bench.model), bench.loaded.sha256


def _check_prompts(cases: Cases, encoded: Encoded) -> None:
    """Check that everybody has something to predict: a text of one token has no piece; raises InputError."""
    held = [(f"client {client.name}", client.train) for client in cases.clients]
    for where, examples in (*held, (cases.corpus.source, cases.split.test)):
        if not encoded.of(examples):
            remedy = "bring longer texts, or ask for other clients"
            raise InputError("no text of two tokens or more", where=where, remedy=remedy)


def device_of(config: RunConfig, name: str | None = None) -> DeviceModel:
    """Load a device of a run, its own unless another is named.

    Raises:
        InputError: If it cannot be loaded, or only training of the base model could use it.
    """
    device = load_device(config.device_model if name is None else name, config.device)
    if device.readout.range == "learned" and not config.lora.train_scalers:
        raise InputError(
            "a run trains adapters alone, so nothing learns the range of the readout",
            where=f"{device.name}: readout.range", expected="fixed or calibrated", received="learned",
            remedy="--set device.readout.range=calibrated, or --set lora.train_scalers=true",
        )  # fmt: skip
    if device.linear.adc_range == "learned":
        raise InputError(
            "a run trains adapters alone, so nothing learns the range of the arrays' converters",
            where=f"{device.name}: linear.adc_range", expected="ideal, fixed or calibrated", received="learned",
            remedy="--set device.linear.adc_range=calibrated",
        )  # fmt: skip
    return device


def load_bench(config: RunConfig, task: Task, device: DeviceModel) -> Bench:
    """Load the model on a device and attach an adapter: a new one, or the one that the run starts from."""
    loaded = load_model(
        config.model, device, token_period_of(config), sample_notes(config.fields), config.adaptation
    )  # fmt: skip
    answers = [loaded.tokenizer(answer_text(name), add_special_tokens=False)["input_ids"] for name in task.classes]
    facts = model_facts(loaded)
    model = attach_adapter(loaded.model, config.lora, base_name=loaded.name, seed=config.seed)
    origin = None if config.adapter is None else start_from(model, loaded, adapter_folder(config.adapter))
    facts["adapter_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts["ternary_weights"] = facts["ternary_parameters"]
    return Bench(config, task, loaded, model, answers, _pad_id(loaded), facts, origin)


def sample_notes(fields: Sequence[str]) -> list[str]:
    """Return made-up notes, from whose statistics scalers and ranges of a model are set where it has none."""
    return [build_note(case, fields) for case in load_synthetic(40, n_hospitals=4, seed=1).cases[:16]]


def start_from(model: PeftModel, loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    """Set a saved adapter on a model that has one of the same settings.

    Returns:
        Its digest, and the base and device that it was trained on.

    Raises:
        InputError: If it was trained on another base model, or does not fit.
    """
    identity = read_identity(folder)
    if identity.base.sha256 != loaded.sha256:
        raise InputError(
            "the adapter belongs to another base model", where=str(folder),
            expected=f"{identity.base.name} ({identity.base.sha256[:12]})",
            received=f"{loaded.name} ({loaded.sha256[:12]})", remedy="give the base that it was trained on as --model",
        )  # fmt: skip
    adapter = read_adapter(folder)
    load_adapter(model, adapter, folder)
    facts = identity.model_dump(mode="json", include={"base", "device"})
    return {"sha256": adapter_digest(adapter), **facts}


def identity_of(config: RunConfig, loaded: LoadedModel, device: DeviceModel) -> AdapterIdentity:
    """Describe what an adapter that a run trains belongs to."""
    return AdapterIdentity(
        base=BaseIdentity(name=loaded.name, sha256=loaded.sha256),
        device=DeviceIdentity(
            name=device.name, file_sha256=device.file_sha256, overrides=config.device, token_period=config.token_period
        ),
        lora=config.lora,
    )


def token_period_of(config: RunConfig) -> float | str:
    """Return the time between two tokens [s], or ``"auto"``."""
    return "auto" if config.token_period == "auto" else parse_quantity(config.token_period, "s")


def training_die(config: RunConfig, device: DeviceModel, index: int, server_round: int) -> Die | None:
    """Return the chip that a client trains on in a round; None is the device as designed.

    One index further than the last client's is that of the client that holds all cases.
    """
    if config.training_chips == "design":
        return None
    own = (config.seed, "hospital's chip", index)
    return Die(seed_of(*own, server_round) if config.training_chips == "new" else seed_of(*own), device)


def own_chips(config: RunConfig, device: DeviceModel, clients: int) -> list[int]:
    """Return the seeds of the clients' own chips, if that is where they train."""
    if config.training_chips != "own":
        return []
    return [die.seed for i in range(clients) if (die := training_die(config, device, i, 0)) is not None]


def evaluation_die(config: RunConfig, device: DeviceModel, number: int) -> Die:
    """Return one of the chips that a run's model is evaluated on; none of them is a hospital's."""
    return Die(seed_of(config.seed, "die of evaluation", number), device)


Chips = Callable[[int, int], Die | None]
"""Returns the chip that a client trains on in a round; see :func:`training_die`."""


def make_hospital(
    index: int, prompts: list[Prompt], bench: Bench, device: DeviceModel, training: LocalTraining, chips: Chips,
    *, private: bool = True,
) -> Hospital:  # fmt: skip
    """Make one client: its prompts, and the shared model on the chip that it trains on.

    Its cases are as private as the run says, unless nothing that it makes leaves this process.
    """

    def put_on_chip(server_round: int) -> None:
        die = chips(index, server_round if bench.config.training_chips == "new" else 0)
        emulate(bench.model, device, die_seed=die, token_period=bench.loaded.placing.token_period_s)

    privacy = _of_gradients(bench.config) if private else None
    kind = Hospital if privacy is None else partial(PrivateHospital, privacy=privacy)
    return kind(index, prompts, bench.model, bench.answers, bench.pad_id, training, put_on_chip)


def _local_training(config: RunConfig) -> LocalTraining:
    return LocalTraining(
        config.local_steps, config.batch_size, config.learning_rate, config.note_loss, config.num_rounds, config.seed,
        piece=4 * config.batch_size, optimiser=config.optimiser,
    )  # fmt: skip


def _baselines(cases: Cases, encoded: Encoded, config: RunConfig, vocabulary: int) -> dict[str, dict[str, Any]]:
    """Score what needs no language model on the same split and fields."""
    task, split = cases.corpus.task, cases.split
    if not task.classes:
        train, test = ([prompt.tokens for prompt in encoded.of(part)] for part in (split.train, split.test))
        return language_baselines(train, test, vocabulary)
    return baselines([(client.name, client.train) for client in cases.clients], split.test, task, seed=config.seed)


def ideal_twin(device: DeviceModel) -> DeviceModel:
    """Return the ideal device with this one's window, and with its activation, which the model was made for."""
    ideal = load_device("ideal", {"window.tokens": device.window.tokens})
    if device.activation.kind == "softmax":  # scalers and logits are calibrated to the device's currents
        continuous = replace(device.activation, levels=None)
        return replace(ideal, activation=continuous, saturation=device.saturation, cell=device.cell)
    return ideal


def _pad_id(loaded: LoadedModel) -> int:
    tokenizer = loaded.tokenizer
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if found is None else int(found)
