"""Configuration of a run: one frozen object, from YAML and command line, with strict keys and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError, field_validator

from device_models import InputError, parse_quantity
from device_models.errors import nearest
from device_models.strict_yaml import parse_yaml, read_yaml
from fllm.data import check_fields

DEFAULT_FIELDS = ("labs", "imaging")
"""Fields of the default run: short prompts that lose nothing to the linear baseline on all fields."""

Count = Annotated[StrictInt, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(_Strict):
    """Low-rank adapters beside every ternary layer, in digital."""

    r: Count = 8
    alpha: Annotated[StrictFloat, Field(gt=0)] = 16.0
    dropout: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.0


class RunConfig(_Strict):
    """Everything that decides the numbers of a run.

    Attributes:
        device_model: Path of a device file, or the name of a shipped one.
        device: Overrides of device keys, for example ``{"readout.bits": 6}``.
        token_period: Time between two tokens, for example ``"10 us"``; ``"auto"`` is the model's own latency.
        model: Folder of a Hugging Face causal language model; None is the shipped base model.
        adaptation: ``two_step`` adapts the range scalers to the device's non-linear cells as published (leroux2025,
            equation 9), from their statistics on linear cells; nothing is trained.
        data_dir: Folder in the MIMIC-IV-Ext-CDM layout; None makes up a synthetic cohort.
        fields: Parts of the note that the model reads.
        num_cases: Cases of the synthetic cohort.
        num_hospitals: Hospitals of the synthetic cohort; None is one per client.
        label_concentration: How alike the synthetic hospitals' mixes of diagnoses are (Dirichlet); 0.1 is extreme.
        test_fraction: Share of cases held out for evaluation.
        max_tokens: Longest prompt; longer ones lose the middle of their text, and are counted.
        num_clients: Clients; hospitals are merged or split to this number.
        num_rounds: Rounds of federated averaging.
        batch_size: Cases per local step.
        local_steps: Steps of each client per round.
        learning_rate: Peak rate of AdamW, made anew in each round.
        note_loss: Weight of the note's own tokens beside the answer in the training loss.
        network: Link of every client: ``lan``, ``wifi``, ``5g``, or a file of that form; prices the bytes sent.
        dies: Chips, none of them a hospital's, on which each round's model is evaluated.
        seed: Decides everything random.
        threads: CPU threads; equal results are promised for equal numbers of threads.
    """

    device_model: str = "gaincell_28nm"
    device: dict[str, Any] = Field(default_factory=dict)
    token_period: str = "10 us"
    model: str | None = None
    adaptation: Literal["none", "two_step"] = "none"
    data_dir: str | None = None
    fields: tuple[str, ...] = DEFAULT_FIELDS
    num_cases: Annotated[StrictInt, Field(ge=40, le=1_000_000)] = 1000
    num_hospitals: Count | None = None
    label_concentration: Annotated[StrictFloat, Field(gt=0, lt=1e6)] = 10.0
    test_fraction: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.2
    max_tokens: Annotated[StrictInt, Field(ge=16)] = 384
    num_clients: Count = 4
    num_rounds: Count = 10
    batch_size: Count = 8
    local_steps: Count = 20
    learning_rate: Annotated[StrictFloat, Field(gt=0)] = 6e-3
    note_loss: Annotated[StrictFloat, Field(ge=0)] = 0.05
    lora: LoraSettings = LoraSettings()
    network: str = "lan"
    dies: Count = 1
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    threads: Count = 2

    @field_validator("fields")
    @classmethod
    def _known_fields(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_fields(value)
        return value

    @field_validator("token_period")
    @classmethod
    def _readable_period(cls, value: str) -> str:
        if value != "auto" and not parse_quantity(value, "s") > 0:
            raise ValueError("expected 'auto' or a time above zero")
        return value


def load_config(file: Path | None = None, settings: Mapping[str, object] | None = None) -> RunConfig:
    """Build the configuration from a YAML file and settings that override it.

    Args:
        file: A run file, or None for the defaults.
        settings: New values by dotted key; ``device.<key>`` reaches into the device file.

    Returns:
        The configuration.

    Raises:
        InputError: If a key is unknown or a value is not accepted.
    """
    tree = read_yaml(file) if file is not None else {}
    where = str(file) if file is not None else "options"
    if not isinstance(tree, dict):
        raise InputError("not a run file", where=where, expected="keys and values", received=type(tree).__name__)
    for key, value in (settings or {}).items():
        _set(tree, key.split("."), value)
    return validate_config(tree, where)


def validate_config(tree: Mapping[str, object], where: str) -> RunConfig:
    """Validate a plain mapping, for example the ``config`` of a ``result.json``; raises InputError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = LoraSettings.model_fields if path.startswith("lora.") else RunConfig.model_fields
            remedy = nearest(str(problem["loc"][-1]), known)
            raise InputError("unknown key", where=f"{where}: {path}", remedy=remedy) from None
        message = str(problem["msg"]).removeprefix("Value error, ")
        raise InputError(message, where=f"{where}: {path}", received=problem["input"]) from None


def parse_setting(text: str) -> tuple[str, object]:
    """Read one ``--set a.b=c``, its value as YAML; raises InputError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError("cannot be read", where=f"--set {text}", expected="key=value, such as lora.r=4")
    return key.strip(), parse_yaml(value, f"--set {key}")


def _set(tree: dict[str, Any], path: list[str], value: object) -> None:
    if path[0] == "device" and len(path) > 1:  # device keys are dotted names of the device file
        path = ["device", ".".join(path[1:])]
    for part in path[:-1]:
        inner = tree.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InputError("not a section", where=".".join(path), expected="a key that holds further keys")
        tree = inner
    tree[path[-1]] = value
