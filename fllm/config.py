"""Configuration of a run: one frozen object, from YAML and command line, with strict keys and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from device_models import InputError, parse_quantity
from device_models.errors import nearest
from device_models.strict_yaml import parse_yaml, read_yaml
from fllm.data import check_fields
from fllm.sections import (
    AVERAGING,
    Count,
    CueSettings,
    LoraSettings,
    Optimiser,
    PrivacySettings,
    SecureSettings,
    StrategySettings,
    Strict,
    WireFormat,
)

DEFAULT_FIELDS = ("labs", "imaging")
"""Fields of the default run: short prompts that lose nothing to the linear baseline on all fields."""


class RunConfig(Strict):
    """Everything that decides the numbers of a run.

    Attributes:
        device_model: Path of a device file, or the name of a shipped one.
        device: Overrides of device keys, for example ``{"readout.bits": 6}``.
        client_devices: Device files or shipped names that are dealt to the clients in turn; none is ``device_model``
            for all. Overrides in ``device`` hold for each; the server evaluates on ``device_model``.
        token_period: Time between two tokens, for example ``"10 us"``; ``"auto"`` is the model's own latency.
        model: Folder of a Hugging Face causal language model; None is the shipped base model.
        adapter: Folder of a trained adapter, or of its run, to start from; its settings become ``lora``.
        evaluate_only: Evaluate that adapter and train nothing; what is said of training then has no effect.
        adaptation: ``two_step`` adapts the range scalers to the device's non-linear cells as published (leroux2025,
            equation 9), from their statistics on linear cells; nothing is trained.
        task: ``diagnosis`` of clinical cases, ``csv`` for classification of any table of texts, or ``text`` for
            language modelling on plain text.
        data_dir: Folder in the MIMIC-IV-Ext-CDM layout, or of such folders, one per client; None makes up a synthetic
            cohort.
        data_files: Table of the task ``csv``, or text files of the task ``text``.
        text_column: Column of the table that holds the text; several are separated by commas.
        label_column: Column that holds the class.
        client_column: Column that names the client of each row, if there is one.
        split_column: Column that says train, validation or test, for ``split: column``; text files are named so.
        fields: Parts of the note that the model reads.
        cues: Switches against what tells the diagnosis without describing it.
        num_cases: Cases of the synthetic cohort.
        num_hospitals: Hospitals of the synthetic cohort; None is one per client.
        label_concentration: How alike the synthetic hospitals' mixes of diagnoses are (Dirichlet); 0.1 is extreme.
        split: ``holdout`` (random, stratified), ``kfold``, ``lacdm`` (the published split of MIMIC-IV-Ext-CDM), or
            ``column``.
        test_fraction: Share of cases held out for evaluation.
        validation_fraction: Share of cases held out beside them, to fit a temperature on.
        num_folds: Folds of ``kfold``.
        fold: Which of them is the test set, from 0.
        max_tokens: Longest prompt; the longest fields of longer ones are cut at their end, and counted.
        field_tokens: Most tokens of single fields, for example ``{"imaging": 128}``.
        num_clients: Clients; hospitals are merged or split to this number.
        partition: How cases are dealt to clients: by ``hospital``, ``iid``, ``dirichlet`` over the labels, or ``age``.
        dirichlet_alpha: How alike the clients' mixes are under ``dirichlet``; 0.1 is extreme.
        strategy: How the server combines what clients send.
        privacy: Differential privacy of what clients send, and its budget.
        secure: Secure aggregation, which shows the server the clients' sum alone.
        clients_per_round: Clients drawn for each round; None is all.
        min_clients: Least number of clients whose update is usable; with fewer a round fails, and the run can be
            resumed.
        client_timeout: Time after which a client of a round is given up, for example ``"10 min"``; None waits for ever.
            Clients in the run's own process cannot be given up.
        wire: How numbers of adapters travel: ``float32``, ``float16`` or ``int8``, the latter two with error feedback.
        num_rounds: Rounds of the federation.
        evaluate_every: Rounds from one evaluation to the next; the last round always has one.
        batch_size: Cases per local step.
        local_steps: Steps of each client per round.
        optimiser: Of the clients, made anew in each round: ``adamw``, or ``sgd``, whose updates stay in proportion to
            their gradients; gradients are cut to norm 1 before either.
        learning_rate: Its peak rate.
        note_loss: Weight of the note's own tokens beside the answer in the training loss.
        lora_baselines: Adapters trained for comparison after the last round: ``centralised`` on all cases pooled,
            ``local`` on each client's alone, ``one_chip`` by the same federation with all clients on one chip.
        centralised_steps: Optimiser steps per round of the former; None is twice ``local_steps``, after which it gains
            no more in the default run (docs/experiments.md).
        calibration: What is done to the likelihoods of the classes: nothing, ``content_free`` (their values without a
            text are subtracted), or ``temperature`` (fitted on the validation cases).
        generation: Whether the last model also writes its answers, scored by the published rules.
        network: Link of every client: ``lan``, ``wifi``, ``5g``, or a file of that form; prices the bytes sent.
        training_chips: Where clients train: ``own``, each on the chip that it has; ``new``, each on another in every
            round, so that no client can be told by its chip; ``design``, on the device without a chip's deviations.
        dies: Chips, none of them a hospital's, on which each round's model is evaluated.
        chip_table: Whether the last model, and what ``local`` and ``one_chip`` trained, is also evaluated on the
            chip of every client and on three chips at least that nobody trained on.
        seed: Decides everything random.
        threads: CPU threads of each process; None is two, and one where clients train in processes of their own. Equal
            results are promised for equal numbers of threads.
    """

    device_model: str = "gaincell_28nm"
    device: dict[str, Any] = Field(default_factory=dict)
    client_devices: tuple[str, ...] = ()
    token_period: str = "10 us"
    model: str | None = None
    adapter: str | None = None
    evaluate_only: StrictBool = False
    adaptation: Literal["none", "two_step"] = "none"
    task: Literal["diagnosis", "csv", "text"] = "diagnosis"
    data_dir: str | None = None
    data_files: tuple[str, ...] = ()
    text_column: str = "text"
    label_column: str = "label"
    client_column: str | None = None
    split_column: str | None = None
    fields: tuple[str, ...] = DEFAULT_FIELDS
    cues: CueSettings = CueSettings()
    num_cases: Annotated[StrictInt, Field(ge=40, le=1_000_000)] = 1000
    num_hospitals: Count | None = None
    label_concentration: Annotated[StrictFloat, Field(gt=0, lt=1e6)] = 10.0
    split: Literal["holdout", "kfold", "lacdm", "column"] = "holdout"
    test_fraction: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.2
    validation_fraction: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.0
    num_folds: Annotated[StrictInt, Field(ge=2)] = 5
    fold: Annotated[StrictInt, Field(ge=0)] = 0
    max_tokens: Annotated[StrictInt, Field(ge=16)] = 384
    field_tokens: dict[str, Count] = Field(default_factory=dict)
    num_clients: Count = 4
    partition: Literal["hospital", "iid", "dirichlet", "age"] = "hospital"
    dirichlet_alpha: Annotated[StrictFloat, Field(gt=0, lt=1e6)] = 1.0
    strategy: StrategySettings = StrategySettings()
    privacy: PrivacySettings = PrivacySettings()
    secure: SecureSettings = SecureSettings()
    clients_per_round: Count | None = None
    min_clients: Count = 1
    client_timeout: str | None = None
    wire: WireFormat = "float32"
    num_rounds: Count = 6
    evaluate_every: Count = 1
    batch_size: Count = 8
    local_steps: Count = 20
    optimiser: Optimiser = "adamw"
    learning_rate: Annotated[StrictFloat, Field(gt=0)] = 6e-3
    note_loss: Annotated[StrictFloat, Field(ge=0)] = 0.05
    lora: LoraSettings = LoraSettings()
    lora_baselines: tuple[Literal["centralised", "local", "one_chip"], ...] = ("centralised",)
    centralised_steps: Count | None = None
    calibration: Literal["none", "content_free", "temperature"] = "none"
    generation: StrictBool = False
    network: str = "lan"
    training_chips: Literal["own", "new", "design"] = "own"
    dies: Count = 1
    chip_table: StrictBool = False
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    threads: Count | None = None

    @property
    def asked(self) -> int:
        """Clients asked in each round."""
        return min(self.clients_per_round or self.num_clients, self.num_clients)

    @field_validator("fields")
    @classmethod
    def _known_fields(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_fields(value)
        return value

    @model_validator(mode="after")
    def _fitting_task(self) -> RunConfig:
        """Refuse settings that would be without effect, or have nothing to work on."""
        if self.evaluate_only and self.adapter is None:
            raise ValueError("evaluate_only evaluates a trained adapter: name its folder as adapter")
        if self.task == "diagnosis" and self.data_files:
            raise ValueError("data_files belong to the tasks csv and text; clinical cases are read from data_dir")
        if self.task != "diagnosis" and (self.data_dir is not None or not self.data_files):
            raise ValueError(f"the task {self.task} reads data_files; name one, and no data_dir")
        if self.task != "diagnosis" and (self.split == "lacdm" or self.partition == "age"):
            raise ValueError("the split lacdm and the partition age need clinical cases (task: diagnosis)")
        if self.task == "text" and (self.generation or self.calibration != "none"):
            raise ValueError("language modelling has no classes: generation and calibration need another task")
        if self.task == "text" and self.field_tokens:
            raise ValueError("field_tokens have no effect on the task text, which is cut into pieces of max_tokens")
        if self.split == "column" and self.task == "csv" and self.split_column is None:
            raise ValueError("the split column needs split_column, the name of the table's column")
        self._check_federation()
        self._check_privacy()
        self._check_secure()
        self._check_chips()
        if self.calibration == "temperature" and self.split in ("holdout", "kfold") and not self.validation_fraction:
            raise ValueError("a temperature is fitted on validation cases: set validation_fraction above 0")
        return self

    def _check_privacy(self) -> None:
        """Raise ValueError where a guarantee would not hold."""
        privacy, strategy = self.privacy, self.strategy
        if privacy.kind == "client" and (strategy.kind not in ("fedavg", "fedprox") or strategy.factors != "average"):
            raise ValueError("privacy of clients is accounted for plain averages: strategy.kind fedavg or fedprox")
        if privacy.kind == "record" and self.lora.train_scalers:
            raise ValueError("lora.train_scalers has no gradient per case: take privacy.kind client, or none")
        if privacy.kind == "record" and self.lora.dropout:
            raise ValueError("lora.dropout draws by a case's place in the batch, and so lets cases act on each other")

    def _check_secure(self) -> None:
        """Raise ValueError where the server needs more of single clients than secure aggregation lets it see."""
        if self.secure.threshold_of(self.asked) is None:
            return
        if self.strategy.kind not in AVERAGING or self.strategy.factors != "average":
            raise ValueError(
                "secure.aggregation shows the server the clients' mean alone, which is not enough for strategy.kind"
                f" {self.strategy.kind} with factors {self.strategy.factors}; take {', '.join(AVERAGING)}, and average"
            )
        if self.privacy.kind == "client":
            raise ValueError("privacy.kind client cuts single updates at the server, which secure.aggregation hides")
        if self.wire != "float32":
            raise ValueError(f"secure.aggregation sends numbers of its own form; wire: {self.wire} has no effect")

    def _check_chips(self) -> None:
        """Raise ValueError where clients have no chips that could be compared."""
        if len(self.client_devices) > self.num_clients:
            raise ValueError(f"client_devices names more devices than the {self.num_clients} clients there are")
        if self.chip_table and self.strategy.factors == "share_a":
            raise ValueError("chip_table compares chips by one adapter; with strategy.factors share_a there are many")
        if "one_chip" in self.lora_baselines and not (self.chip_table and self.training_chips == "own"):
            raise ValueError("one_chip compares clients' own chips: it needs chip_table: true and training_chips: own")

    def _check_federation(self) -> None:
        asked = self.asked
        if self.clients_per_round is not None and self.clients_per_round > self.num_clients:
            raise ValueError(f"clients_per_round is more than the {self.num_clients} clients there are")
        if self.min_clients > asked:
            raise ValueError(f"min_clients is more than the {asked} clients that are asked in a round")
        self.strategy.check_clients(asked)
        if self.strategy.factors in ("svd", "share_a") and self.lora.freeze_a:
            raise ValueError(
                f"lora.freeze_a leaves A as it is, and strategy.factors: {self.strategy.factors} changes it; take one"
            )
        if self.strategy.factors == "share_a":
            self._check_own_adapters()
        if self.strategy.client_ranks and self.strategy.factors != "svd":
            raise ValueError("adapters of different ranks have no average: strategy.client_ranks needs factors: svd")
        if any(rank > self.lora.r for rank in self.strategy.client_ranks):
            raise ValueError(f"a rank of strategy.client_ranks is above lora.r, which is {self.lora.r}")

    def _check_own_adapters(self) -> None:
        """Refuse what needs one adapter, where every client has its own; raises ValueError."""
        reasons = {
            "evaluate_only": (self.evaluate_only, "evaluates one adapter"),
            "generation": (self.generation, "lets one model write"),
            "calibration: temperature": (self.calibration == "temperature", "fits one temperature to one model"),
        }
        for key, (is_set, reason) in reasons.items():
            if is_set:
                raise ValueError(f"{key} {reason}, and with strategy.factors: share_a every client has its own")

    @field_validator("client_timeout")
    @classmethod
    def _readable_time(cls, value: str | None) -> str | None:
        if value is not None and not parse_quantity(value, "s") > 0:
            raise ValueError("expected a time above zero")
        return value

    @field_validator("token_period")
    @classmethod
    def _readable_period(cls, value: str) -> str:
        if value != "auto" and not parse_quantity(value, "s") > 0:
            raise ValueError("expected 'auto' or a time above zero")
        return value


SECTIONS: dict[str, type[BaseModel]] = {
    "lora": LoraSettings, "cues": CueSettings, "strategy": StrategySettings, "privacy": PrivacySettings,
    "secure": SecureSettings,
}  # fmt: skip
"""Keys of a run that hold further keys, apart from ``device``."""


def threads_of(config: RunConfig) -> int:
    """Return the CPU threads of a process that does everything in turn."""
    return config.threads or 2


def load_config(file: Path | None = None, settings: Mapping[str, object] | None = None) -> RunConfig:
    """Build the configuration from a YAML file and settings that override it.

    Args:
        file: A run file, or None for the defaults.
        settings: New values by dotted key; ``device.<key>`` reaches into the device file.

    Returns:
        The configuration; where it names an adapter, ``lora`` is that of the adapter.

    Raises:
        InputError: If a key is unknown, a value is not accepted, or an adapter cannot be read or contradicts ``lora``.
    """
    from fllm.model.identity import with_settings_of_adapter  # reads the settings that are defined here

    tree = read_yaml(file) if file is not None else {}
    where = str(file) if file is not None else "options"
    if not isinstance(tree, dict):
        raise InputError("not a run file", where=where, expected="keys and values", received=type(tree).__name__)
    for key, value in (settings or {}).items():
        _set(tree, key.split("."), value)
    return with_settings_of_adapter(validate_config(tree, where))


def validate_config(tree: Mapping[str, object], where: str) -> RunConfig:
    """Validate a plain mapping, for example the ``config`` of a ``result.json``; raises InputError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = SECTIONS.get(path.partition(".")[0], RunConfig).model_fields
            remedy = nearest(str(problem["loc"][-1]), known)
            raise InputError("unknown key", where=f"{where}: {path}", remedy=remedy) from None
        message = str(problem["msg"]).removeprefix("Value error, ")
        if not path:  # keys that do not go together
            raise InputError(message, where=where) from None
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
