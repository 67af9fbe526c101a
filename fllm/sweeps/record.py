"""What ``result.json`` says of a sweep around its rows, and the plan read back from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from device_models import DeviceModel, InputError, load_device, parse_quantity
from device_models.loading import preset_names
from fllm.config import RunConfig, validate_config
from fllm.energy import cost_sources
from fllm.model.digest import digest_of_arrays
from fllm.model.identity import SCALERS, WEIGHTS
from fllm.record import assumptions, device_facts, environment
from fllm.results import SCHEMA_VERSION, SWEEP, read_result
from fllm.sweeps.design import parse_vary
from fllm.sweeps.plan import Plan, Point, base_values, make_plan
from hwsim.effects import idle_effects


def describe(plan: Plan, adapters: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe a sweep before anything is computed."""
    config, base = plan.config, base_values(plan)
    device = load_device(config.device_model, config.device)
    period = None if config.token_period == "auto" else parse_quantity(config.token_period, "s")
    written = _written(plan)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": SWEEP,
        "status": "running",
        "mode": plan.mode,
        "design": {
            "kind": plan.design, "drawn": plan.drawn, "points": sum(not p.added for p in plan.points),
            "seed": config.seed,
        },
        "dies": plan.dies,
        "seeds": list(plan.seeds),
        "keys": [
            {
                "key": key.name,
                "unit": key.unit,
                "ordered": _is_ordered(plan, key.name),
                "column": key.column,
                "values": written[key.name],
                "spec": key.vary.spec,
                "base": base[key.name][0],
                "base_si": base[key.name][1],
            }
            for key in plan.keys
        ],
        "config": config.model_dump(mode="json"),
        "device": device_facts(device, config, period) | {"as_shipped": _as_shipped(device)},
        "environment": environment(config),
        "sources": cost_sources(device) | {"user": "Set by the user of this sweep"},
        "assumptions": assumptions(device, config),
        "data": {},
        "model": {},
        "baselines": {},
        "not_modelled": [],
        "adapters": adapters,
        "points": [_point(point) for point in plan.points],
        "rows": [],
        "final": None,
    }  # fmt: skip


def _as_shipped(device: DeviceModel) -> bool:
    """Return whether the base device is a shipped file with no value changed."""
    if device.name not in preset_names():
        return False
    shipped = load_device(device.name)
    same = {field.name for field in fields(DeviceModel)} - {"name", "title", "provenance"}
    return all(getattr(device, name) == getattr(shipped, name) for name in same)


def _written(plan: Plan) -> dict[str, list[Any]]:
    """Return the different values of each key, in the order given."""
    found: dict[str, list[Any]] = {key.name: [] for key in plan.keys}
    for point in plan.points:
        for name, value in point.settings.items():
            if not point.added and value not in found[name]:
                found[name].append(value)
    return found


def _is_ordered(plan: Plan, name: str) -> bool:
    values = [point.values[name] for point in plan.points if name in point.values]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _point(point: Point) -> dict[str, Any]:
    return {
        "point": point.number,
        "settings": dict(point.settings),
        "values": dict(point.values),
        "settings_sha256": point.sha256,
        "base": point.base,
        "added": point.added,
        "same_as": point.same_as,
        "warnings": [],
    }


def plan_of(record: Mapping[str, Any], where: str) -> Plan:
    """Make the plan of a sweep from its record again; raises InputError."""
    return make_plan(
        validate_config(record["config"], where), [parse_vary(f"{key['key']}={key['spec']}") for key in record["keys"]],
        design=record["design"]["kind"], points=record["design"]["drawn"], mode=record["mode"], dies=record["dies"],
        seeds=record["seeds"], confirmed=True,
    )  # fmt: skip


def given_adapter(path: Path, plan: Plan, seed: int) -> dict[str, Any]:
    """Describe the adapter of a finished run; raises InputError if it is none, or does not belong to the seed."""
    run = read_result(path / "result.json")
    if run.get("kind") == SWEEP or run["status"] != "completed":
        raise InputError("not a finished run", where=str(path), expected="the folder of a completed fllm-run")
    if run["config"]["seed"] != seed:
        raise InputError("of another seed", where=str(path), expected=str(seed), received=run["config"]["seed"])
    own = _training(validate_config(run["config"], str(path / "result.json")))
    for key, value in _training(plan.config).items():
        if own[key] != value:
            raise InputError(
                "trained with another configuration", where=f"{path}: {key}", expected=repr(value), received=own[key]
            )  # fmt: skip
    if stored_digest(path / "adapter") != run["final"]["adapter_sha256"]:
        raise InputError("the adapter changed since it was trained", where=str(path), remedy="train it anew")
    return adapter_facts(path.resolve(), run)


def _training(config: RunConfig) -> dict[str, Any]:
    """Return what two runs must share for their adapters to stand for the same thing."""
    apart = {"device", "device_model", "token_period", "adaptation", "dies", "seed", "threads", "network"}
    apart |= {"lora_baselines", "centralised_steps", "calibration", "generation", "chip_table"}  # after the training
    apart.add("evaluate_every")
    return config.model_dump(mode="json", exclude=apart)


def warnings_of(device: DeviceModel, row: Mapping[str, Any]) -> list[str]:
    """Say what of a device has no effect where it is evaluated chip by chip, with noise, and where it is too slow."""
    period, latency = row["token_period_s"], row["latency_per_token_s"]
    idle = idle_effects(device, die=True, noise=True, token_period_s=period)
    lines = [f"no effect of {name}: {reason}" for name, reason in idle.items()]
    if period is not None and latency > period * (1 + 1e-9):
        lines.append("a token takes longer than the token period that decay and leakage are computed with")
    return lines


def stored_digest(folder: Path) -> str:
    """Return what :func:`fllm.model.adapters.adapter_digest` says of a saved adapter, without torch.

    Raises:
        InputError: If it cannot be read.
    """
    from safetensors.numpy import load_file

    try:
        state = load_file(folder / WEIGHTS)
        if (folder / SCALERS).is_file():
            state |= load_file(folder / SCALERS)
        return digest_of_arrays(state)
    except Exception as error:  # a file that is gone, cut off or no such file, each with an error of its own
        raise InputError(f"adapter cannot be read ({type(error).__name__})", where=str(folder)) from None


def adapter_facts(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the adapter that a run has trained."""
    return {
        "seed": run["config"]["seed"],
        "run": run["name"],
        "folder": str(folder),
        "sha256": run["final"]["adapter_sha256"],
        "model_sha256": run["model"]["sha256"],
        "device": run["device"]["name"],
        "rounds": run["config"]["num_rounds"],
        "test_cases": run["data"]["num_test"],
    }
