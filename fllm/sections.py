"""Sections of a run's configuration: adapter, cues, and how the server combines what clients send."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, model_validator

Count = Annotated[StrictInt, Field(ge=1)]
Optimiser = Literal["adamw", "sgd"]
"""Of the clients; what each costs stands in :mod:`hwsim.training`."""
WireFormat = Literal["float32", "float16", "int8"]
"""Of the numbers of an adapter on their way."""


class Strict(BaseModel):
    """Unknown keys, infinities and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(Strict):
    """Low-rank adapters beside ternary layers, in digital.

    Attributes:
        r: Rank.
        alpha: The adapter's output is multiplied by alpha / r.
        dropout: Share of the adapter's inputs that training leaves out.
        targets: Projections that get an adapter, such as ``q_proj``; none named is every ternary layer.
        rslora: Multiply by alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv:2312.03732).
        freeze_a: A stays as it was drawn from the seed; only B is trained and sent (FFA-LoRA, Sun et al., ICLR 2024).
        train_scalers: The range scalers of the emulated attention are trained, sent and saved with the adapter.
    """

    r: Count = 8
    alpha: Annotated[StrictFloat, Field(gt=0)] = 16.0
    dropout: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] = ()
    rslora: StrictBool = False
    freeze_a: StrictBool = False
    train_scalers: StrictBool = False


class CueSettings(Strict):
    """Switches against what tells the diagnosis without describing it."""

    mask: Literal["keep", "neutral", "drop_sentence"] = "neutral"
    studies: Literal["exam_name", "modality", "hidden"] = "modality"
    mentions: Literal["keep", "neutral"] = "keep"
    panel: Literal["short", "full"] = "short"


Share = Annotated[StrictFloat, Field(ge=0, lt=1)]


class StrategySettings(Strict):
    """How the server makes the next adapter of what clients send; all kinds are Flower's own classes.

    Attributes:
        kind: ``fedavg`` (McMahan 2017), ``fedprox`` (Li 2020: clients are held near the global adapter), ``fedavgm``
            (Hsu 2019: momentum), ``fedadam`` or ``fedyogi`` (Reddi 2021: adaptive rates at the server; let clients
            train by ``optimiser: sgd``), ``fedmedian`` or ``trimmed_mean`` (Yin 2018, of each number), ``krum`` or
            ``multikrum`` (Blanchard 2017: the updates closest to the others).
        factors: What is averaged of low-rank adapters: ``average`` takes the means of A and of B, which is not the mean
            of their products; ``svd`` sends the factors of the adapters' rank whose product is closest to that mean;
            ``share_a`` averages A, and B stays at each client (FedSA-LoRA, Guo et al., ICLR 2025).
        client_ranks: Ranks of the clients' adapters, none above ``lora.r``, dealt in turn; needs ``factors: svd``.
        server_learning_rate: Of ``fedavgm``, ``fedadam`` and ``fedyogi``; None is 1 for the first, where that is
            plain momentum, and 0.01 for the others, where it falls linearly over the rounds towards a tenth.
        server_momentum: Of ``fedavgm``.
        beta_1: Decay of the mean of updates, of ``fedadam`` and ``fedyogi``.
        beta_2: Decay of the mean of their squares, of ``fedadam`` and ``fedyogi``.
        tau: What is added to the root of the latter, of ``fedadam`` and ``fedyogi``.
        proximal_mu: Weight of half the squared distance from the global adapter in the clients' loss, of ``fedprox``.
        trim: Share of the clients cut off at each end, of ``trimmed_mean``.
        malicious: Clients that ``krum`` and ``multikrum`` reckon to be malicious.
        keep: Updates that ``multikrum`` averages; None is all but the malicious ones.
    """

    kind: Literal[
        "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "trimmed_mean", "krum", "multikrum"
    ] = "fedavg"
    factors: Literal["average", "svd", "share_a"] = "average"
    client_ranks: tuple[Count, ...] = ()
    server_learning_rate: Annotated[StrictFloat, Field(gt=0)] | None = None
    server_momentum: Share = 0.9
    beta_1: Share = 0.9
    beta_2: Share = 0.99
    tau: Annotated[StrictFloat, Field(gt=0)] = 1e-3
    proximal_mu: Annotated[StrictFloat, Field(gt=0)] = 0.01
    trim: Annotated[StrictFloat, Field(gt=0, lt=0.5)] = 0.2
    malicious: Count = 1
    keep: Count | None = None

    @model_validator(mode="after")
    def _of_its_kind(self) -> StrategySettings:
        """Refuse settings that the kind does not read."""
        for key, kinds in _READ_BY.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.kind not in kinds:
                raise ValueError(f"{key} has no effect with {self.kind}; it belongs to {', '.join(kinds)}")
        return self

    def check_clients(self, clients: int) -> None:
        """Raise ValueError where there are too few clients for the kind to do what it is for."""
        if self.kind == "trimmed_mean" and int(self.trim * clients) < 1:
            raise ValueError(f"a share of {self.trim:g} of {clients} clients is less than one: trim would cut off none")
        if self.kind in ("krum", "multikrum") and clients < 2 * self.malicious + 3:
            raise ValueError(
                f"{self.kind} needs {2 * self.malicious + 3} clients to tell {self.malicious} malicious ones"
                f" (Blanchard 2017: n >= 2 f + 3); there are {clients}"
            )
        if self.keep is not None and self.keep > clients - self.malicious:
            raise ValueError(f"keep is more than the {clients - self.malicious} clients that are not malicious")


class PrivacySettings(Strict):
    """Differential privacy of what leaves a client: whom it protects, and how much. Needs the extra ``dp``.

    Attributes:
        kind: ``client``: the server cuts every client's update to ``clipping_norm`` and adds noise to their plain mean,
            so that the adapter hardly tells whether a client took part; all clients must answer. ``record``: every
            client trains by DP-SGD, which cuts the gradient of each case and adds noise to their sum, so that an update
            hardly tells whether a case (a piece of text without classes) was among the client's.
        noise_multiplier: Standard deviation of that noise, in clipping norms; epsilon follows from it.
        clipping_norm: Largest Euclidean norm of a client's update, or of a case's gradient.
        target_delta: The delta that epsilon is stated for; must lie below one in the number of clients, or of cases.
        max_epsilon: The run ends before the round that would spend more; None sets no limit.
        secret_noise: Noise and the drawing of cases come from the operating system's entropy: the run cannot be
            repeated. Otherwise they follow from the seed, and who knows the seed can take the noise off: a simulation
            of privacy, and of what it costs.
    """

    kind: Literal["none", "client", "record"] = "none"
    noise_multiplier: Annotated[StrictFloat, Field(gt=0)] = 1.0
    clipping_norm: Annotated[StrictFloat, Field(gt=0)] = 1.0
    target_delta: Annotated[StrictFloat, Field(gt=0, lt=1)] = 1e-5
    max_epsilon: Annotated[StrictFloat, Field(gt=0)] | None = None
    secret_noise: StrictBool = False

    @model_validator(mode="after")
    def _without_effect(self) -> PrivacySettings:
        """Refuse settings where there is no privacy."""
        for key, field in type(self).model_fields.items():
            if self.kind == "none" and getattr(self, key) != field.default:
                raise ValueError(f"{key} has no effect with none; it belongs to client, record")
        return self


class SecureSettings(Strict):
    """Secure aggregation: the server learns the sum of the clients' updates, and none of them (Bonawitz et al. 2017).

    Attributes:
        aggregation: Clients mask their updates, losses and numbers of cases, so that the masks cancel in the sum; what
            the server then knows of a single client are the counts of its events. Four messages a round instead of one.
        threshold: How many clients together can take the masks of another off, one that dropped out or all; as many
            must answer in every stage of a round. None is two thirds of those asked.
    """

    aggregation: StrictBool = False
    threshold: Count | None = None

    @model_validator(mode="after")
    def _without_effect(self) -> SecureSettings:
        if self.threshold is not None and not self.aggregation:
            raise ValueError("threshold has no effect without aggregation")
        return self

    def threshold_of(self, clients: int) -> int | None:
        """Return the threshold for so many clients of a round; None is without secure aggregation.

        Raises:
            ValueError: If it is not more than half of them, at least 2, and no more than all.
        """
        if not self.aggregation:
            return None
        from fllm.federation.secure.thresholds import check_threshold, default_threshold

        threshold = default_threshold(clients) if self.threshold is None else self.threshold
        check_threshold(threshold, clients)
        return threshold


AVERAGING = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi")
"""Strategies that need no more of the clients' updates than their mean."""
_READ_BY: dict[str, tuple[str, ...]] = {
    "factors": ("fedavg", "fedprox"),
    "server_learning_rate": ("fedavgm", "fedadam", "fedyogi"),
    "server_momentum": ("fedavgm",),
    "beta_1": ("fedadam", "fedyogi"),
    "beta_2": ("fedadam", "fedyogi"),
    "tau": ("fedadam", "fedyogi"),
    "proximal_mu": ("fedprox",),
    "trim": ("trimmed_mean",),
    "malicious": ("krum", "multikrum"),
    "keep": ("multikrum",),
}
