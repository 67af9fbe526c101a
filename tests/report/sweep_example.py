"""Sweeps with invented numbers, made by a small formula, in the shape that ``fllm sweep`` writes.

A case is right when its fixed difficulty lies below the accuracy of the device, so devices share their hard cases as
real ones do; a few cases per die flip at random.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from device_models.costs import PARTS
from device_models.quantities import parse_quantity
from fllm.sweeps.table import energy_column

UNITS = {"retention.tau": "s", "token_period": "s", "operation.temperature": "K"}
BASE = {
    "retention.tau": "5 ms",
    "readout.bits": 5,
    "variability.gain_sigma": 0.05,
    "token_period": "10 us",
    "device_model": "gaincell_28nm",
    "linear.adc": "fixed",
}
IDEAL = 0.785
TAUS = ["0.2 ms", "1 ms", "5 ms", "50 ms"]
PRESETS = ["ideal", "gaincell_28nm", "gaincell_28nm_4t1c", "gaincell_28nm_logic", "gaincell_igzo", "parity_leroux2025",
           "sram_dcim_28nm"]  # fmt: skip
PROMPT = 75
SLUGS = {part: energy_column(part) for part in PARTS}


def grid(**spec: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations; a double underscore in a name stands for a dot."""
    names = [name.replace("__", ".") for name in spec]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*spec.values())]


def make_sweep(
    points: Sequence[Mapping[str, Any]],
    *,
    design: str = "grid",
    dies: int = 4,
    seeds: Sequence[int] = (0,),
    cases: int = 200,
    mode: str = "evaluate",
    status: str = "completed",
    finished: int | None = None,
    failed: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Return a sweep over points, of which so many rows are finished and some points failed for a reason."""
    names = list(points[0])
    run = json.loads(Path(__file__).with_name("example_result.json").read_text(encoding="utf-8"))
    codes = {"key": "readout.codes", "value": "counter", "kind": "derived", "source": "leroux2025", "where": "p. 817"}
    run["device"]["as_shipped"] = True
    run["device"]["values"] += [codes, {"key": "window.tokens", "value": "1024", "kind": "simulated"}]
    made = [_point(number, settings) for number, settings in enumerate(points)]
    if not any(point["base"] for point in made):
        made.append(_point(len(made), {name: BASE[name] for name in names}) | {"added": True})
    rows = [row for point in made for row in _rows(point, dies, seeds, cases, mode, failed or {})]
    values = {name: list(dict.fromkeys(str(point[name]) for point in points)) for name in names}
    shared = ("device", "model", "environment", "sources", "assumptions", "not_modelled", "baselines")
    return {key: run[key] for key in shared} | {
        "schema_version": 1,
        "kind": "sweep",
        "status": status,
        "name": "example-sweep",
        "command": "fllm sweep fabricated-run " + " ".join(f"--vary {k}='{','.join(v)}'" for k, v in values.items()),
        "created": "2026-11-26T14:00:00Z",
        "mode": mode,
        "design": {"kind": design, "points": len(points), "seed": 0},
        "dies": dies,
        "seeds": list(seeds),
        "keys": [_key(name, values[name]) for name in names],
        "config": run["config"] | {"dies": dies},
        "data": run["data"] | {"num_test": cases, "tokens_per_prompt": {"median": PROMPT, "p95": 101, "max": 128}},
        "adapters": [_adapter(seed, cases) for seed in seeds] if mode == "evaluate" else [],
        "points": made,
        "rows": rows if finished is None else rows[:finished],
        "final": {"wall_seconds": 71.3, "failed": len(failed or {})} if status == "completed" else None,
    }


def si(name: str, value: Any) -> Any:
    return parse_quantity(value, UNITS[name]) if name in UNITS else value


def _key(name: str, values: list[str]) -> dict[str, Any]:
    base = BASE[name]
    unit = UNITS.get(name)
    ordered = not isinstance(base, str) or unit is not None
    return {
        "key": name,
        "unit": unit,
        "ordered": ordered,
        "column": f"{name}_{unit}" if unit else name,
        "values": values,
        "spec": ",".join(values),
        "base": str(base),
        "base_si": si(name, base) if ordered else None,
    }


def _point(number: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "point": number,
        "settings": dict(settings),
        "values": {name: si(name, value) for name, value in settings.items()},
        "base": all(si(name, value) == si(name, BASE[name]) for name, value in settings.items()),
        "added": False,
        "same_as": None,
        "warnings": [],
    }


def _adapter(seed: int, cases: int) -> dict[str, Any]:
    return {"seed": seed, "run": f"trained-seed{seed}", "sha256": f"{seed:x}1b2c3d4" * 8, "device": "gaincell_28nm",
            "rounds": 10, "test_cases": cases}  # fmt: skip


def _rows(
    point: dict[str, Any], dies: int, seeds: Sequence[int], cases: int, mode: str, failed: Mapping[int, str]
) -> list[dict[str, Any]]:
    rows = []
    for seed in seeds:
        if point["point"] in failed:
            blank = dict.fromkeys(_evaluated(point, seed, 0, cases, mode))
            rows.append(blank | {"point": point["point"], "seed": seed, "die": None, "status": "failed",
                                 "reason": failed[point["point"]]})  # fmt: skip
            continue
        rows += [_evaluated(point, seed, die, cases, mode) for die in range(dies)]
    return rows


def _evaluated(point: dict[str, Any], seed: int, die: int, cases: int, mode: str) -> dict[str, Any]:
    settings = {name: si(name, value) for name, value in BASE.items()} | point["values"]
    period = settings["token_period"]
    age, window = (PROMPT - 1) * period, 1023 * period
    left = math.exp(-age / settings["retention.tau"])
    accuracy = _accuracy(settings, left) + 0.004 * math.sin(7.0 * die + seed)
    difficulty = np.random.default_rng([1, seed]).permutation(cases) / cases
    flip = np.random.default_rng([2, seed, die, point["point"]]).random(cases) < 0.005
    right, ideal = (
        (difficulty < accuracy) ^ flip,
        difficulty < IDEAL + (0.002 * point["point"] if mode == "train" else 0),
    )
    parts = _parts(settings)
    total = sum(parts.values())
    return {
        "point": point["point"],
        "seed": seed,
        "die": die,
        "status": "ok",
        "reason": None,
        **{f"{name}_{UNITS[name]}" if name in UNITS else name: value for name, value in point["values"].items()},
        "accuracy": float(right.mean()),
        "macro_f1": float(right.mean()) - 0.03,
        "perplexity": 9.1 - 4 * accuracy,
        "accuracy_ideal": float(ideal.mean()),
        "macro_f1_ideal": float(ideal.mean()) - 0.03,
        "perplexity_ideal": 5.9,
        "energy_per_token_j": total,
        "energy_per_token_lower_95_j": 0.7 * total,
        "energy_per_token_upper_95_j": 1.5 * total,
        **{SLUGS[part]: parts.get(part, 0.0) for part in PARTS},
        "latency_per_token_s": 2.64e-6 * (1 + 0.02 * 2 ** (settings["readout.bits"] - 5)),
        "area_m2": 1.87e-5,
        "token_period_s": period,
        "oldest_age_s": age,
        "signal_left": left,
        "window_signal_left": math.exp(-window / settings["retention.tau"]),
        "correct": _hex(right),
        "correct_ideal": _hex(ideal),
        "settings_sha256": f"{point['point']:012x}",
    }


def _accuracy(settings: Mapping[str, Any], left: float) -> float:
    presets = {"ideal": 1.0, "gaincell_28nm": 1.0, "gaincell_igzo": 0.98, "gaincell_28nm_logic": 0.7}
    kept = 1.0 / (1.0 + (0.35 / max(left, 1e-9)) ** 3)
    read = 1.0 - 0.15 * 3.5 ** (3 - settings["readout.bits"])
    matched = math.exp(-2.0 * settings["variability.gain_sigma"] ** 2)
    return 0.4 + (IDEAL - 0.4) * kept * read * matched * presets.get(settings["device_model"], 0.95)


def _parts(settings: Mapping[str, Any]) -> dict[str, float]:
    scale = {"gaincell_igzo": 1.6, "sram_dcim_28nm": 2.4, "gaincell_28nm_logic": 0.8}.get(settings["device_model"], 1.0)
    bits, tau = settings["readout.bits"], settings["retention.tau"]
    return {
        "attention arrays": 96e-9 * scale,
        "attention converters": 9e-9 * 2.0 ** (bits - 5) * scale,
        "writes": 4e-9,
        "refresh": 6e-12 / tau,
        "digital control": 2.5e-9,
        "linear arrays": 212e-9 * scale,
        "linear converters": 88e-9,
        "leakage of attention arrays": 0.4e-9,
        "adapter": 61e-9,
        "LM head and other digital layers": 53e-9,
        "norms, activations, scalers": 19e-9,
        "weight memory": 46e-9,
        "wires": 3e-9,
        "leakage of digital memory": 1e-9,
    }


def _hex(right: np.ndarray) -> str:
    bits = "".join("1" if flag else "0" for flag in right)
    bits += "0" * (-len(bits) % 4)
    return "".join(f"{int(bits[i : i + 4], 2):x}" for i in range(0, len(bits), 4))


def hand_made(
    name: str,
    values: Sequence[Any],
    right: Sequence[Sequence[int]],
    *,
    ideal: int,
    cases: int = 100,
    energies: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return a sweep of one key whose devices get so many of the first cases right, by point and die."""
    sweep = make_sweep([{name: value} for value in values], dies=len(right[0]), cases=cases)
    sweep["points"] = [point for point in sweep["points"] if not point["added"]]
    sweep["rows"] = [row for row in sweep["rows"] if row["point"] < len(values)]
    for row in sweep["rows"]:
        hits = right[row["point"]][row["die"]]
        row |= {
            "accuracy": hits / cases,
            "accuracy_ideal": ideal / cases,
            "correct": _hex(np.arange(cases) < hits),
            "correct_ideal": _hex(np.arange(cases) < ideal),
        }
        if energies:
            row["energy_per_token_j"] = energies[row["point"]]
    return sweep


def drawn_points(number: int) -> list[dict[str, Any]]:
    """Points as a drawn design has them."""
    rng = np.random.default_rng(0)
    return [
        {
            "retention.tau": f"{10 ** rng.uniform(-0.7, 1.7):.4g} ms",
            "variability.gain_sigma": float(round(rng.uniform(0.0005, 0.2), 4)),
        }
        for _ in range(number)
    ]
