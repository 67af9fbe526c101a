"""What a run says on the terminal of its rounds' clients, and of itself when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device_models import format_quantity


def summary(result: Mapping[str, Any], folder: Path) -> str:
    """Say what a person wants to know of a finished run; everything else is in its report."""
    final, base = result["final"], result["baselines"]
    lines = ["data      SYNTHETIC: fabricated patients, no clinical meaning"] if result["data"]["synthetic"] else []
    lines += _accuracy_lines(final, base, result)
    if final["energy_per_token_j"] is not None:
        ends = final["energy"]["energy_per_token_j"]
        lines.append(
            f"energy    {format_quantity(final['energy_per_token_j'], 'J')} per token (modelled, forward pass;"
            f" 95 % interval {format_quantity(ends['lower_95'], 'J')} to {format_quantity(ends['upper_95'], 'J')})"
        )
        lines += [
            f"          {format_quantity(energy, 'J'):>9}  {part}"
            for part, energy in final["energy_per_token_parts_j"].items()
            if energy
        ]
        lines += [f"          {sentence}" for sentence in final["energy"]["dominates"]]
        lines += [f"          {note}" for note in final["energy"]["price_notes"]]
        lines.append(f"latency   {format_quantity(final['latency_per_token_s'], 's')} per token (modelled)")
        lines += _training_lines(final["training"])
    lines += _privacy_lines(result)
    lines.append(_adapter_line(result, folder))
    lines += [f"warning   {warning}" for warning in result.get("warnings", ())]
    memory = final["peak_memory_bytes"]
    lines.append(f"this run  {final['wall_seconds']:.0f} s" + (f", {memory / 1e9:.2f} GB of memory" if memory else ""))
    lines.append(f"report    {folder / 'report.html'}")
    return "\n".join(lines)


def _adapter_line(result: Mapping[str, Any], folder: Path) -> str:
    """Say where the adapter is and which it is, to be compared with that of another run."""
    digest = result["final"]["adapter_sha256"][:16]
    if result["config"].get("evaluate_only"):
        return f"adapter   sha256 {digest}, as it was given"
    if (result["config"].get("strategy") or {}).get("factors") == "share_a":
        return f"adapters  sha256 {digest} of all together, one per client in {folder / 'adapters'}"
    return f"adapter   sha256 {digest} in {folder / 'adapter'}"


def _privacy_lines(result: Mapping[str, Any]) -> list[str]:
    """Say what privacy was spent; nothing where there is none."""
    spent = result["rounds"][-1].get("privacy")
    if not spent:
        return []
    who = "client" if spent["kind"] == "client" else "case"
    lines = [f"privacy   epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g}, for one {who} more or less"]
    ended = result.get("privacy", {}).get("ended")
    return lines + ([f"          {ended}"] if ended else [])


def _training_lines(training: Mapping[str, Any] | None) -> list[str]:
    """Say what training spent; nothing where nothing was trained."""
    if training is None:
        return []
    spent = (f"{format_quantity(e['nominal'], 'J')} {place}" for place, e in training["lines_j"].items())
    return [f"training  {', '.join(spent)} (three places, not one system)"]


def _accuracy_lines(final: Mapping[str, Any], base: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Say how accurate the model is on both devices, and what it stands against."""
    low, high = final["accuracy_interval_95"]["hardware"]
    word = "accuracy of the next token" if result["task"]["kind"] == "language" else "accuracy"
    lines = [
        f"{word:<9} {final['accuracy_hardware']:.1%} on the device (95 % interval {low:.1%} to {high:.1%}),"
        f" {final['accuracy_ideal']:.1%} on the ideal device"
    ]
    hardware, ideal = (final["evaluation"][device].get("macro_f1") for device in ("hardware", "ideal"))
    if hardware is not None:
        ends = hardware["interval_95"]
        lines.append(
            f"macro-F1  {hardware['value']:.3f} on the device ({ends[0]:.3f} to {ends[1]:.3f}),"
            f" {ideal['value']:.3f} on the ideal device"
        )
    lines += [
        f"{'against' if number == 0 else '':<9} {scores['accuracy']:>6.1%}  {scores['name']}"
        for number, scores in enumerate(base.values())
        if scores["accuracy"] is not None
    ]
    if final["gap_closed"] is not None:
        lines.append(f"          {final['gap_closed']:.0%} of the way from the majority to the pooled linear baseline")
    worst = final["evaluation"]["hardware"].get("worst_client")
    if worst is not None:
        lines.append(f"client    {worst['accuracy']:.1%} at {worst['name']}, the one with the lowest accuracy")
    written = final["evaluation"]["generation"]
    if written is not None:
        rules = " by the published rules" if result["task"]["kind"] == "diagnosis" else ""
        lines.append(
            f"written   {written['hardware']['accuracy']:.1%} right{rules},"
            f" {written['hardware']['unparsable']:.1%} name no class"
        )
    return lines


def client_lines(row: Mapping[str, Any], names: Mapping[int, str]) -> list[str]:
    """Say of a round which clients were left out, then whose updates stood out."""
    found = [
        (f"client {one['client']} ({names.get(one['client'], 'no name')})", one) for one in row.get("participants", ())
    ]
    left_out = [f"{who} was left out: {one['reason']}" for who, one in found if one["reason"] is not None]
    return left_out + [f"{who} stands out: {one['outlier']}" for who, one in found if one["outlier"] is not None]
