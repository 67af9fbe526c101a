"""The plan of a sweep: which points there are, what each changes, and which of them are the same.

Knows neither torch nor results: a plan is made, checked and shown before anything is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal

from device_models import DeviceModel, InputError, format_quantity, load_device, parse_quantity
from device_models.errors import nearest
from device_models.loading import key_units
from device_models.schema import COEFFICIENT_UNITS
from fllm.config import SECTIONS, RunConfig, load_config
from fllm.sweeps.design import DRAWN, Kind, Points, Span, Vary, combinations

Mode = Literal["evaluate", "train"]
MODES: tuple[Mode, ...] = ("evaluate", "train")
MANY_POINTS = 10_000
"""Points from which on a sweep wants to be confirmed."""
TRIED = 8
"""Points tried for a value before it is called wrong."""
MOST_TRIED = 64
"""Values of a key that are tried; of more, so many spread over them."""
ON_THE_DEVICE = ("device_model", "token_period", "adaptation")
"""Run keys that a trained adapter can be evaluated under; all others decide how it is trained or on what."""
_REPLICATED = {"seed": "--seeds", "dies": "--dies"}
_NEVER = {
    "threads": "each point runs on one thread", "device": "name a key of the device, such as retention.tau",
    "evaluate_only": "use --mode evaluate",
}  # fmt: skip


_POLYNOMIAL = "cell.coefficients"
_EXACT = 12
"""Digits of a value that no file states, as that of a default."""


def _polynomial_units(coefficients: Sequence[object]) -> tuple[str, ...]:
    """Return the units of the cell polynomial, the one key whose parts differ in theirs."""
    return COEFFICIENT_UNITS[1:2] if len(coefficients) == 1 else COEFFICIENT_UNITS


@dataclass(frozen=True)
class Key:
    """One varied key.

    Attributes:
        name: Dotted key.
        scope: Whether it stands in the device file or in the run's configuration.
        unit: SI unit of its values; None for plain numbers and words.
        vary: Its values as written.
    """

    name: str
    scope: Literal["device", "run"]
    unit: str | None
    vary: Vary

    def si(self, value: object) -> Any:
        """Return a value as a number in SI where it is a quantity, else as it is; ValueError if it is none."""
        if self.name == _POLYNOMIAL and isinstance(value, list):
            return [parse_quantity(text, unit) for text, unit in zip(value, _polynomial_units(value), strict=True)]
        return value if self.unit is None or value is None or value == "auto" else parse_quantity(value, self.unit)

    @property
    def column(self) -> str:
        """Name of its column in the table; ``token_period_s`` is the period in effect, which ``auto`` does not say."""
        name = "set_token_period" if self.name == "token_period" else self.name
        return name if self.unit is None else f"{name}_{self.unit}"


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        number: Its place.
        settings: Value of each varied key, as written.
        values: The same in SI.
        sha256: 12 digits that are equal for equal settings in effect.
        base: Whether it is the base device itself.
        added: Whether it was added to the design to show the base device.
        same_as: Number of an earlier point with the same settings in effect.
    """

    number: int
    settings: Mapping[str, object]
    values: Mapping[str, object]
    sha256: str
    base: bool = False
    added: bool = False
    same_as: int | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers of a sweep.

    Attributes:
        config: Configuration of the base run, with the device as it stands before anything is varied.
        keys: What is varied.
        design: How the values combine.
        drawn: Number of points of a drawn design; None for the others.
        mode: ``evaluate`` one trained adapter under each device, or ``train`` one through each.
        dies: Chips that each point is evaluated on.
        seeds: Runs that each point is repeated with.
    """

    config: RunConfig
    keys: tuple[Key, ...]
    design: Kind
    drawn: int | None
    mode: Mode
    dies: int
    seeds: tuple[int, ...]

    @cached_property
    def points(self) -> list[Point]:
        """All points; the base device is one of them, added at the end where the design leaves it out."""
        return list(_points(self))

    def config_of(self, point: Point, seed: int) -> RunConfig:
        """Return the configuration of one point and seed; raises InputError where it is no valid one."""
        settings: dict[str, object] = {"seed": seed, "dies": 1, "threads": 1, **WITHOUT_EXTRAS}
        for key in self.keys:
            if key.name in point.settings:
                settings[f"device.{key.name}" if key.scope == "device" else key.name] = point.settings[key.name]
        return with_settings(self.config, settings)


WITHOUT_EXTRAS: dict[str, object] = {"lora_baselines": [], "generation": False, "chip_table": False}
"""A sweep compares devices; what a single run adds for its own report would be done once per point."""


def with_settings(config: RunConfig, settings: Mapping[str, object]) -> RunConfig:
    """Return a configuration with other values by dotted key; raises InputError."""
    flat: dict[str, object] = {}
    for key, value in config.model_dump(mode="json").items():
        flat |= (
            {f"{key}.{part}": each for part, each in value.items()} if key in (*SECTIONS, "device") else {key: value}
        )
    return load_config(None, flat | dict(settings))


def make_plan(
    config: RunConfig, varied: Sequence[Vary], *, design: Kind, points: int | None, mode: Mode, dies: int,
    seeds: Sequence[int], confirmed: bool = False,
) -> Plan:  # fmt: skip
    """Check what a sweep is asked for, and lay it out.

    Args:
        config: Configuration of the base run.
        varied: Varied keys.
        design: How their values combine.
        points: Points of a drawn design.
        mode: What happens at a point.
        dies: Chips per point and seed.
        seeds: Seeds.
        confirmed: Whether more than ``MANY_POINTS`` points are meant.

    Raises:
        InputError: If a key is unknown or cannot be varied, a value is never accepted, or there are no points or very
            many.
    """
    if not varied:
        raise InputError("zero points: nothing is varied", where="--vary", expected="--vary key=values, once or more")
    if dies < 1 or not seeds:
        raise InputError("out of range", where="--dies and --seeds", expected="1 or more", received=(dies, len(seeds)))
    keys = tuple(_resolve(vary, mode) for vary in varied)
    if config.evaluate_only:
        raise InputError(
            "the base run trains nothing", where="evaluate_only", expected="false",
            remedy="--mode evaluate evaluates the adapter of a finished run",
        )  # fmt: skip
    if config.strategy.factors == "share_a":
        raise InputError(
            "every client has an adapter of its own, and a sweep evaluates one", where="strategy.factors",
            expected="average or svd", received="share_a",
        )  # fmt: skip
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise InputError("a key is varied twice", where="--vary", received=", ".join(names))
    laid = combinations([(k.vary, k.unit) for k in keys], design, points=points, seed=config.seed)
    if laid.number > MANY_POINTS and not confirmed:
        raise InputError(
            f"{laid.number:,} points", where="--vary", expected=f"at most {MANY_POINTS:,}",
            remedy="add --yes if you mean it, or try --design sobol --points 256",
        )  # fmt: skip
    plan = Plan(config, keys, design, points, mode, dies, tuple(seeds))
    _check_values(plan, laid)
    return plan


def _resolve(vary: Vary, mode: Mode) -> Key:
    """Find what a key is a key of; raises InputError where there is none or it may not be varied."""
    where, name = f"--vary {vary.key}", vary.key
    if name in _REPLICATED:
        raise InputError("cannot be varied", where=where, remedy=f"repeat each point with {_REPLICATED[name]}")
    if name in _NEVER:
        raise InputError("cannot be varied", where=where, remedy=_NEVER[name])
    parts = {f"{section}.{key}" for section, settings in SECTIONS.items() for key in settings.model_fields}
    run = (set(RunConfig.model_fields) - set(SECTIONS)) | parts
    if name in run:
        if mode == "evaluate" and name not in ON_THE_DEVICE:
            raise InputError(
                "decides how the adapter is trained, and --mode evaluate evaluates a trained one", where=where,
                expected=f"a device key, {', '.join(ON_THE_DEVICE)}", remedy="use --mode train",
            )  # fmt: skip
        return Key(name, "run", "s" if name == "token_period" else None, vary)
    known = key_units()
    if name not in known:
        namesakes = sorted(key for key in known if key.endswith(f".{name}"))
        remedy = f"did you mean {' or '.join(namesakes)}?" if namesakes else nearest(name, {*known, *run})
        raise InputError("unknown key", where=where, expected="a key of the device or of the run", remedy=remedy)
    return Key(name, "device", known[name], vary)


def _check_values(plan: Plan, laid: Points) -> None:
    """Refuse a value that no point can have; a combination that fails alone is left to be recorded as failed."""
    listed = None
    for index, key in enumerate(plan.keys):
        span = key.vary.span(key.unit) if plan.design in DRAWN else None
        if isinstance(span, Span):  # its ends stand for all between them
            tried = [key.vary.drawn(end, span, key.unit) for end in (span.low, span.high)]
        else:
            tried = list({json.dumps(v, sort_keys=True, default=str): v for v in laid.values[index]}.values())
            tried = [tried[place] for place in _spread(len(tried), MOST_TRIED)]
        listed = listed or laid.listed()
        for value in tried:
            for values in _holding(listed, index, value, exact=not isinstance(span, Span)):
                settings = dict(zip((k.name for k in plan.keys), values, strict=True))
                problem = _problem(plan, settings)
                if problem is None:
                    break
            else:
                raise problem or InputError("zero points", where=f"--vary {key.name}")


def _spread(number: int, most: int) -> list[int]:
    """Return at most so many places out of a number of them, both ends among them."""
    return sorted({place * (number - 1) // (most - 1) for place in range(most if number else 0)})


def _holding(
    points: Sequence[tuple[object, ...]], index: int, value: object, *, exact: bool
) -> Iterator[tuple[object, ...]]:
    """Give some points spread over the design with a value at one place."""
    found = [point for point in points if not exact or point[index] is value or point[index] == value]  # NaN is itself
    for place in _spread(len(found), TRIED):
        yield (*found[place][:index], value, *found[place][index + 1 :])


def _problem(plan: Plan, settings: Mapping[str, object]) -> InputError | None:
    """Return what is wrong with a point; None if nothing is."""
    point = Point(0, settings, {}, "")
    try:
        config = plan.config_of(point, plan.seeds[0])
        load_device(config.device_model, config.device)
    except InputError as error:
        return error
    return None


def _points(plan: Plan) -> Iterator[Point]:
    units = [(key.vary, key.unit) for key in plan.keys]
    laid = combinations(units, plan.design, points=plan.drawn, seed=plan.config.seed)
    known = {name: written for name, (written, _) in base_values(plan).items() if written is not None}
    effects = _Effects(plan)
    own = effects.digest(known)
    first: dict[str, int] = {}
    listed = [dict(zip((key.name for key in plan.keys), values, strict=True)) for values in laid.listed()]
    for number, settings in enumerate([*listed, known]):
        added = number == len(listed)
        digest = effects.digest(settings)
        if added and own in first:
            return
        same = first.setdefault(digest, number)
        yield Point(
            number, settings, _in_si(plan, settings), digest[:12], base=digest == own and same == number, added=added,
            same_as=None if same == number else same,
        )  # fmt: skip


def _in_si(plan: Plan, settings: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key in plan.keys:
        if key.name in settings:
            try:
                found[key.name] = key.si(settings[key.name])
            except ValueError:  # the point fails, and says why
                found[key.name] = settings[key.name]
    return found


def base_values(plan: Plan) -> dict[str, tuple[object, object]]:
    """Return what the base device and run say of each varied key, as written and in SI; None where they say nothing."""
    config = plan.config
    device = load_device(config.device_model, config.device)
    return {key.name: _base_value(key, config, device) for key in plan.keys}


def _base_value(key: Key, config: RunConfig, device: DeviceModel) -> tuple[object, object]:
    if key.scope == "run":
        value = attrgetter(key.name)(config)
        value = list(value) if isinstance(value, tuple) else value
        return value, key.si(value)
    si = attrgetter(key.name)(device)
    source = device.provenance.get(key.name)
    if key.name == _POLYNOMIAL:
        return [format_quantity(x, u, _EXACT) for x, u in zip(si, _polynomial_units(si), strict=True)], list(si)
    if key.unit is not None and si is not None:
        return format_quantity(si, key.unit, _EXACT) if source is None else source.text, si
    return (list(si) if isinstance(si, tuple) else si), si


class _Effects:
    """Tells which settings are in effect: a value that the base has anyway is no setting."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._keys = {key.name: key for key in plan.keys}
        self._devices: dict[str, DeviceModel | None] = {}

    def digest(self, settings: Mapping[str, object]) -> str:
        """Return a digest that is equal for settings of equal effect."""
        model = str(settings.get("device_model", self._plan.config.device_model))
        device = self._device(model)
        effect: dict[str, object] = {"device": model if device is None else device.file_sha256}
        for name, value in settings.items():
            key = self._keys[name]
            try:
                si = key.si(value)
            except ValueError:  # the point fails, and says why
                si = value
            base = None if device is None else _base_value(key, self._plan.config, device)[1]
            if name != "device_model" and (type(si) is bool, si) != (type(base) is bool, base):
                effect[name] = float(si) if type(si) is int else si
        return hashlib.sha256(json.dumps(effect, sort_keys=True, default=str).encode()).hexdigest()

    def _device(self, model: str) -> DeviceModel | None:
        """Load a device before anything is varied, once; None if it is no valid one."""
        if model not in self._devices:
            try:
                self._devices[model] = load_device(model, self._plan.config.device)
            except InputError:
                self._devices[model] = None
        return self._devices[model]
