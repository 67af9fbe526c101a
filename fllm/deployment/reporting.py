"""Lines for the operator of a server: its sites, its runs, and the rounds of one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fllm.deployment.control import FlowerRun
from fllm.deployment.folders import RUNS_FOLDER, SERVER_CERTIFICATE
from fllm.deployment.following import rows_of
from fllm.deployment.registering import registered
from fllm.deployment.settings import Federation
from fllm.deployment.submitting import control_of, names_of_runs

WARN_DAYS = 60
"""Days before its end at which a certificate is spoken of."""


def status_lines(folder: Path, federation: Federation) -> list[str]:
    """Return what there is to say of a federation; raises RefusedCommand if its SuperLink does not answer."""
    control = control_of(folder, federation)
    nodes, runs = control.nodes(), control.runs()
    site_of = {number: name for name, number in registered(folder).items()}
    online = sum(node.status == "online" for node in nodes)
    lines = [f"{online} of {federation.sites} sites online"]
    lines += [f"  {site_of.get(node.number, 'node ' + node.number)}: {node.status}" for node in nodes]
    name_of = names_of_runs(folder)
    lines += [run_line(run, name_of.get(run.number, "unknown"), folder) for run in runs]
    if federation.tls:
        lines += certificate_lines(folder / SERVER_CERTIFICATE, datetime.now(UTC))
    return lines


def run_line(run: FlowerRun, name: str, folder: Path) -> str:
    """Return the line of one run."""
    rows, total = rows_of(folder / RUNS_FOLDER / name / "result.json")
    done = max((int(row["round"]) for row in rows), default=0)
    rounds = f", round {done} of {total}" if total else ""
    traffic = f"{run.received_bytes / 1e3:.0f} kB from sites, {run.sent_bytes / 1e3:.0f} kB to them"
    reason = f": {run.reason}" if run.details else ""
    return f"{name}: {run.status}{rounds}, {run.seconds:.0f} s, {traffic}{reason}"


def certificate_lines(file: Path, now: datetime) -> list[str]:
    """Return a warning if a certificate ends soon."""
    from fllm.deployment.certificates import end_of

    days = (end_of(file) - now).days
    return [f"warning  {file} ends in {days} days; make a new federation before"] if days < WARN_DAYS else []


def round_line(row: Mapping[str, Any], total: int) -> str:
    """Return the line of one round, as the server's record has it."""
    parts = [f"round {row['round']} of {total}"]
    if row.get("train_loss") is not None:
        parts.append(f"loss {row['train_loss']:.3f}")
    if row["ideal"]["accuracy"] is not None:  # not every round is evaluated
        parts.append(f"accuracy ideal {row['ideal']['accuracy']:.1%}, device {row['hardware']['accuracy']['mean']:.1%}")
    if row["round"]:
        parts.append(f"{row['clients']} sites, {row['uplink_bytes'] / 1e3:.0f} kB up")
    return "; ".join(parts)
