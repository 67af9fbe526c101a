"""How a sweep was done, what its intervals cover, and what a reader must not conclude from it."""

from __future__ import annotations

from device_models.costs import PRICED_AT
from fllm.report.answer import device_entries
from fllm.report.formatting import plural
from fllm.report.sweep.bootstrap import DRAWS
from fllm.report.sweep.facts import Sweep

MEANING = (
    "Energy, latency and area price the test cases: each prompt goes through the model once, and the LM head is asked "
    "at its end. The report of a run prices its training passes, which ask the LM head more often."
)


_PRICED = ("adc", "cost", "digital", "linear")
"""Sections of a device file that hold prices."""


def price_lines(sweep: Sweep) -> list[str]:
    """Say which varied keys the published prices do not follow."""
    entries, varied = device_entries(sweep.result), {key.name for key in sweep.keys}
    lines = []
    for price, conditions in PRICED_AT.items():
        if str((entries.get(price) or {}).get("source")) not in ("leroux2025", "project"):
            continue
        lines += [
            f"Prices of this device belong to {key} = {priced} and do not follow it to other values."
            for key, priced in conditions.items()
            if key in varied
        ]
    return lines


def certainty(sweep: Sweep) -> list[str]:
    """Say what the intervals cover."""
    cases = (sweep.result.get("data") or {}).get("num_test")
    seeds, dies = len(sweep.result.get("seeds") or [0]), int(sweep.result.get("dies") or 1)
    lines = []
    if cases:
        each = " in each seed" if seeds > 1 else ""
        lines.append(
            f"Accuracy is counted on {plural(int(cases), 'test case')}{each} and {plural(dies, 'simulated die')}."
        )
    lines.append(
        f"Intervals in tables redraw dies and test cases together ({DRAWS:,} draws, 2.5 % and 97.5 % quantiles). All "
        "points and the ideal device meet the same cases and the same dies in a draw, so that differences are paired."
    )
    if dies == 1:
        lines.append(
            "Only one die was simulated: the spread between chips is not known, intervals cover test cases alone."
        )
    if seeds == 1:
        lines.append(
            "One seed: the spread between trained adapters and between splits of the data is not in any interval."
        )
    if seeds > 1:
        lines.append("The spread between seeds is in the bars of the figures; intervals of tables leave it out.")
    if sweep.known and sweep.points[sweep.known[0]].energy_interval:
        common = " The same prices hold at every point, so that points differ more surely than their intervals suggest."
        several = any(key.name == "device_model" or key.name.split(".")[0] in _PRICED for key in sweep.keys)
        lines.append(f"The 95 % interval of an energy draws all prices from their ranges.{'' if several else common}")
    lines.append(
        "The most accurate of many points was picked after the fact: its accuracy is likely a little too high."
    )
    return lines


def limits(sweep: Sweep) -> list[str]:
    """List what a reader must not conclude from this sweep."""
    result = sweep.result
    lines = []
    if (result.get("data") or {}).get("synthetic"):
        lines.append(
            "The data are synthetic: the patients are fabricated. Accuracies compare devices with each other; they say "
            "nothing about clinical use."
        )
    lines.append(
        "Energy and latency are modelled: counted events times prices. No chip was measured. Parts without a price, "
        "and everything under “What is not modelled”, are missing from the totals."
    )
    if result.get("mode") == "evaluate":
        lines.append(
            "The adapter was trained once and meets each device as it is: an adapter trained on a device may lose less."
        )
    lines += price_lines(sweep)
    if any(len(cases) > 1 for cases in _cases_by_seed(sweep).values()):
        lines.append(
            "Some points were scored on other test cases than the base device: they have no interval, and differences "
            "to them are not paired."
        )
    entries = device_entries(result)
    assumed = sum(entry.get("kind") == "assumed" for entry in entries.values())
    if assumed:
        lines.append(f"{assumed} of {len(entries)} numbers of the base device are assumptions: no source reports them.")
    warnings = dict.fromkeys(warning for point in sweep.points for warning in point.warnings)
    return lines + [f"At some points: {warning}." for warning in warnings]


def _cases_by_seed(sweep: Sweep) -> dict[int, set[object]]:
    found: dict[int, set[object]] = {}
    for row in (row for point in sweep.points for row in point.rows):
        found.setdefault(row["seed"], set()).add(row.get("cases_sha256"))
    return found


def _known(value: object) -> object:
    return "not known" if value is None else value


def how_lines(sweep: Sweep) -> list[str]:
    """Say how the sweep was done."""
    result = sweep.result
    mode, design = str(result.get("mode")), result.get("design") or {}
    done = {
        "evaluate": "Mode evaluate: trained adapters are evaluated on each device; nothing is trained.",
        "train": "Mode train: each point is a training run of its own, on its own device.",
    }
    lines = [done.get(mode, f"Mode {mode}.")]
    seeded = f", seed {design.get('seed')}" if design.get("kind") in ("random", "sobol") else ""
    added = sum(point.added for point in sweep.points)
    beside = ", and the base device beside them" if added else ""
    seeds = ", ".join(str(seed) for seed in result.get("seeds") or [0])
    lines.append(
        f"Design: {design.get('kind') or 'not stated'}, {plural(int(design.get('points') or 0), 'point')}{seeded}"
        f"{beside}. Each on {plural(int(result.get('dies') or 1), 'die')}; seeds: {seeds}."
    )
    lines += [f"{entry['key']}: {entry.get('spec')}; base device: {_known(entry.get('base'))}."
              for entry in result.get("keys") or []]  # fmt: skip
    lines.append("All other numbers are those of the base device below.")
    lines.append(MEANING)
    lines.append(
        "The ideal device has no levels, no decay, no spread and no noise. An adapter that was trained through a real "
        "one may do better on that than on the ideal device, which therefore is no upper bound."
    )
    lines.append(
        "Bars of figures: Student's t over dies of the mean on the same test cases; with several seeds, over the means "
        "of the seeds. They are cut off at 0 and 100 %."
    )
    lines.append(
        "Required values: the last crossing of the allowed drop, on straight lines between swept values, in the "
        "logarithm of a key that spans a factor of eight or more."
    )
    return [line for line in lines if line]
