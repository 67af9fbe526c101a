"""What a comparison of runs says below their differences: accuracy, cost, training energy, and the limits of it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fllm.report.answer import answer
from fllm.report.comparison import tables
from fllm.report.comparison.csv import comparison_csv
from fllm.report.comparison.facts import Results, same_cases
from fllm.report.comparison.score_tables import baselines_table, scores_table
from fllm.report.comparison.seed_tables import differences_over_seeds_table, models_table, seed_lines, seeds_csv
from fllm.report.comparison.seeds import Seeds
from fllm.report.comparison.sweep_tables import base_table, shared_csv, shared_table
from fllm.report.comparison.sweeps import Shared, Sweeps
from fllm.report.downloads import Download
from fllm.report.energy_facts import energy_of, in_lines, parts_of
from fllm.report.formatting import engineering, percent, times
from fllm.report.tables import Table

_MOST_SENTENCES = 8  # beyond that the tables say it better
_LARGE_PART = 0.05  # [1] share of a total from which a part that is missing elsewhere is worth a sentence


@dataclass(frozen=True)
class Section:
    """One section of a comparison; what it is made of stands in this order.

    Attributes:
        anchor: Its name in addresses.
        title: Its heading.
        lines: Sentences.
        figures: Names of its figures.
        tables: Its tables; None stands for one without rows.
        downloads: Files to save.
    """

    anchor: str
    title: str
    lines: Sequence[str] = ()
    figures: Sequence[str] = ()
    tables: Sequence[Table | None] = ()
    downloads: Sequence[Download] = ()


def run_sections(results: Results, names: Sequence[str]) -> list[Section]:
    """Return the results of runs beside each other."""
    training = tables.training_table(results, names)
    return [
        Section(
            "accuracy",
            "Accuracy",
            _against_first(results, names),
            ("accuracy", "rounds"),
            (
                scores_table(results, names),
                tables.against_first_table(results, names),
                baselines_table(results, names),
            ),
            [comparison_csv(results, names)],
        ),
        Section(
            "cost",
            "Energy, latency and bytes",
            _cost_lines(results, names),
            ("energy_parts",),
            (tables.cost_table(results, names), tables.parts_table(results, names)),
        ),
        Section(
            "training",
            "Training energy",
            () if training else ("No run holds the energy of its training yet.",),
            tables=(training,),
        ),
    ]


def seed_section(seeds: Seeds) -> Section:
    """Return what runs that differ in nothing but the seed say together."""
    return Section(
        "seeds",
        "Over seeds",
        seed_lines(seeds),
        ("seeds", "seed_differences"),
        (models_table(seeds), differences_over_seeds_table(seeds)),
        [seeds_csv(seeds)],
    )


def sweep_sections(sweeps: Sweeps, shared: Sequence[Shared]) -> list[Section]:
    """Return the results of sweeps beside each other: their base devices, then the points that share their settings."""
    keys = ", ".join(sweeps.keys)
    line = (
        f"Settings of {keys} that two or more sweeps have: {len(shared)}. A key that a sweep does not vary has the "
        "value of its base device."
        if shared
        else f"No settings of {keys or 'any key'} stand in two of the sweeps."
    )
    return [
        Section("base", "Base devices, and all points", figures=("all_points",), tables=(base_table(sweeps),)),
        Section(
            "shared",
            "The same settings side by side",
            [line],
            ("shared_points",) if shared else (),
            (shared_table(sweeps, shared),),
            [shared_csv(sweeps, shared)] if shared else (),
        ),
    ]


def limits(results: Results, kind: str) -> list[str]:
    """List what a reader must not conclude from the comparison."""
    lines = []
    if any(result["data"].get("synthetic") for result in results):
        lines.append(
            "Synthetic data are fabricated: accuracies compare devices with each other, and say nothing about clinical "
            "use."
        )
    lines.append(
        "Energy and latency are modelled, no chip was measured; what a device file leaves without a price, and what is "
        "not modelled, is missing on every side."
    )
    if kind == "run":
        lines.append(
            "The 95 % intervals of accuracy stand for the finite number of test cases. They do not hold the spread "
            "between seeds or, with one die, between chips: a difference of two runs may be one of their luck."
        )
    else:
        lines.append("Seeds are not redrawn: how far other seeds would move a point is not in its interval.")
    lines.append(
        "Several differences at once are not told apart: what follows from which setting only a comparison in which "
        "one thing changes can say."
    )
    return lines


def _against_first(results: Results, names: Sequence[str]) -> list[str]:
    """Place every other run's accuracy against the first, and say what would be sharper."""
    lines = [_one_against(results, names, place) for place in range(1, len(results))]
    lines = [line for line in lines if line] if len(lines) <= _MOST_SENTENCES else []
    if all(same_cases(results[0], other) for other in results[1:]):
        lines.append(
            "The test cases are the same in all: comparing the answers case by case, a paired test, would be sharper "
            "than two intervals. The result of a run keeps no answers; that of fllm sweep does."
        )
    return lines


def _one_against(results: Results, names: Sequence[str], place: int) -> str:
    first, other = answer(results[0]), answer(results[place])
    if first.accuracy_hardware is None or other.accuracy_hardware is None:
        return ""
    between = 100 * (other.accuracy_hardware - first.accuracy_hardware)
    change = f"{abs(between):.1f} points {'below' if between < 0 else 'above'}"
    change = "the same accuracy on hardware as" if abs(between) < 0.05 else f"accuracy on hardware {change}"
    sentence = f"{names[place]}: {change} {names[0]} ({percent(other.accuracy_hardware)})"
    verdict = {
        "other test cases": "on other test cases, so it says nothing about what changed",
        "not known yet": "there is no interval yet",
        "apart": "their 95 % intervals do not overlap",
        "overlap": "their 95 % intervals overlap, so they alone establish no difference",
    }[tables.accuracy_verdict(results[0], results[place])]
    return f"{sentence}; {verdict}."


def _cost_lines(results: Results, names: Sequence[str]) -> list[str]:
    lines = [_cost_against(results, names, place) for place in range(1, len(results))]
    lines = [line for line in lines if line] if len(lines) <= _MOST_SENTENCES else []
    lines += [line for place in range(1, len(results)) if (line := _missing_parts(results, names, place))]
    if sum("upper_95" in (energy_of(result).get("energy_per_token_j") or {}) for result in results) > 1:
        lines.append(
            "The intervals of the energy follow from the ranges of the prices. Devices that share prices err together, "
            "so a ratio of two of them is surer than their two intervals say."
        )
    return lines


def _cost_against(results: Results, names: Sequence[str], place: int) -> str:
    first, other = answer(results[0]), answer(results[place])
    ratio = tables.ratio(other.energy_per_token_j, first.energy_per_token_j)
    if ratio is None:
        return ""
    slower = tables.ratio(other.latency_per_token_s, first.latency_per_token_s)
    latency = f", {_as_much(slower)} latency" if slower else ""
    energy = engineering(other.energy_per_token_j, "J")
    return f"{names[place]} against {names[0]}: {_as_much(ratio)} energy per token ({energy}){latency}."


def _missing_parts(results: Results, names: Sequence[str], place: int) -> str:
    """Name the large parts that one of two totals holds and the other lacks: their ratio is no comparison then."""
    sides = [parts_of(results[0]), parts_of(results[place])]
    if not all(sides) or any("" in in_lines(parts) for parts in sides):
        return ""  # not known, or the parts of an older version
    lacking = []
    for own, other, name in ((sides[0], sides[1], names[place]), (sides[1], sides[0], names[0])):
        total = sum(found["nominal"] for found in own.values())
        gone = [
            part
            for members in in_lines(own).values()
            for part, found in members.items()
            if found["nominal"] > _LARGE_PART * total and not (other.get(part) or {}).get("nominal")
        ]
        lacking += [f"{name} spends nothing on {', '.join(gone)}"] if gone else []
    end = ": not priced there, or not used; the two totals do not hold the same things."
    return f"{'; '.join(lacking)}{end}" if lacking else ""


def _as_much(ratio: float) -> str:
    """Write a ratio in a sentence; what rounds to one is said to be the same."""
    if abs(ratio - 1) < 0.005:
        return "about the same"
    return f"{times(ratio)} {'of ' if ratio < 0.01 else ''}the"
