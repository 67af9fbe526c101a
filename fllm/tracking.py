"""Tracking of a run in TensorBoard or MLflow: optional, off by default, and never the reason why a run fails.

Only numbers and the configuration are written; ``data_dir`` is left out, and of other paths the last part is kept. No
text of a case, no identifier and no hospital's name can get there, because nothing else of a result is read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from device_models.errors import InputError, nearest
from fllm.observer import Observer
from fllm.results import value_at

Setting = bool | int | float | str

ROUND_METRICS: dict[str, tuple[str, ...]] = {
    "train_loss_nat": ("train_loss",),
    "accuracy/ideal": ("ideal", "accuracy"),
    "accuracy/hardware": ("hardware", "accuracy", "mean"),
    "accuracy/hardware_std": ("hardware", "accuracy", "std"),
    "macro_f1/ideal": ("ideal", "macro_f1"),
    "macro_f1/hardware": ("hardware", "macro_f1", "mean"),
    "perplexity/ideal": ("ideal", "perplexity"),
    "perplexity/hardware": ("hardware", "perplexity", "mean"),
    "per_token/energy_j": ("energy_per_token_j",),
    "per_token/latency_s": ("latency_per_token_s",),
    "bytes/uplink": ("uplink_bytes",),
    "bytes/downlink": ("downlink_bytes",),
    "training_energy_j/arrays": ("training", "lines_j", "arrays", "nominal"),
    "training_energy_j/digital_accelerator": ("training", "lines_j", "digital accelerator", "nominal"),
    "training_energy_j/network": ("training", "lines_j", "network", "nominal"),
}
"""Name of a round's number -> where it lies in the round."""

_FINAL_METRICS: dict[str, tuple[str, ...]] = {
    "final/accuracy_ideal": ("accuracy_ideal",),
    "final/accuracy_hardware": ("accuracy_hardware",),
    "final/gap_closed": ("gap_closed",),
    "final/energy_per_token_j": ("energy_per_token_j",),
    "final/energy_per_token_lower_95_j": ("energy", "energy_per_token_j", "lower_95"),
    "final/energy_per_token_upper_95_j": ("energy", "energy_per_token_j", "upper_95"),
    "final/latency_per_token_s": ("latency_per_token_s",),
    "final/training_energy_arrays_j": ("training", "lines_j", "arrays", "nominal"),
    "final/training_energy_digital_accelerator_j": ("training", "lines_j", "digital accelerator", "nominal"),
    "final/training_energy_network_j": ("training", "lines_j", "network", "nominal"),
}
_MARKS = ("accuracy/hardware", "bytes/uplink")
"""Every round has one of them, evaluated or trained: a round that has one in a journal is there."""
_PATHS = ("device_model", "model", "network", "adapter")
_PARAMS_AT_ONCE = 100  # MLflow takes no more in one call


class Journal(Protocol):
    """Where a tracker writes."""

    def open(self, folder: Path, settings: Mapping[str, Setting]) -> set[int]:
        """Begin, or go on with what an interrupted run left; return the rounds that are there."""

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers of one round so that they outlive the process."""

    def close(self, status: str) -> None:
        """End with the run's status."""


class Tracker(Observer):
    """Writes a run's numbers to a journal; when that fails once, it warns and leaves the run alone."""

    def __init__(self, name: str, journal: Journal, warn: Callable[[str], object]) -> None:
        self._name, self._journal, self._warn = name, journal, warn
        self._there: set[int] = set()
        self._off = False

    def run_started(self, record: Mapping[str, Any], folder: Path) -> None:
        """Open the journal with the configuration."""

        def start() -> None:
            self._there = set(self._journal.open(folder, settings_of(record["config"])))

        self._try(start)

    def round_done(self, row: Mapping[str, Any], total: int) -> None:  # noqa: ARG002 - part of the interface
        """Write a round that is not there yet."""
        if row["round"] not in self._there:
            self._try(lambda: self._journal.write(round_numbers(row), row["round"]))
            self._there.add(row["round"])

    def run_ended(self, record: Mapping[str, Any]) -> None:
        """Write the final numbers of a completed run and close the journal."""

        def end() -> None:
            if record["status"] == "completed":
                self._journal.write(final_numbers(record["final"]), record["rounds"][-1]["round"])
            self._journal.close(record["status"])

        self._try(end)

    def _try(self, act: Callable[[], None]) -> None:
        if self._off:
            return
        try:
            act()
        except Exception as error:  # whatever the tracker's library raises: the run is worth more
            self._off = True
            self._warn(f"{self._name} tracks no longer: {_reason(error)}. The run goes on; its result is complete")


def make_trackers(names: Sequence[str], warn: Callable[[str], object] = warnings.warn) -> list[Tracker]:
    """Return an observer for each name, each once.

    Args:
        names: Any of ``tensorboard`` and ``mlflow``.
        warn: Is told in one line when a tracker fails.

    Raises:
        InputError: If a name is unknown or its package is not installed.
    """
    trackers = []
    for name in dict.fromkeys(names):
        if name not in _JOURNALS:
            raise InputError("unknown tracker", where="--track", expected=" or ".join(_JOURNALS), received=name,
                             remedy=nearest(name, _JOURNALS))  # fmt: skip
        journal, packages = _JOURNALS[name]
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            remedy = f"install it with: pip install 'fllm[{name}]'"
            raise InputError(f"the package {missing[0]} is not installed", where=f"--track {name}", remedy=remedy)
        trackers.append(Tracker(name, journal(), warn))
    return trackers


def settings_of(config: Mapping[str, Any]) -> dict[str, Setting]:
    """Flatten a configuration to dotted keys with plain values; nothing tells where on a disk something lies."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, Mapping) else {key: value}
        flat |= inner
    flat.pop("data_dir", None)
    flat |= {key: Path(flat[key]).name for key in _PATHS if flat.get(key)}
    return {
        key: value if isinstance(value, Setting) else json.dumps(value, ensure_ascii=False)
        for key, value in sorted(flat.items())
    }


def round_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a round by the names of :data:`ROUND_METRICS`; what is not known is left out."""
    return _numbers(row, ROUND_METRICS)


def final_numbers(final: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of the end, each name with its unit; what is not known is left out."""
    numbers = _numbers(final, _FINAL_METRICS)
    for device, ends in sorted((final.get("accuracy_interval_95") or {}).items()):
        numbers |= {f"final/accuracy_{device}_{end}_95": ends[i] for i, end in enumerate(("lower", "upper"))}
    return numbers


def _numbers(values: Mapping[str, Any], paths: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    found = {name: value_at(values, *path) for name, path in paths.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _reason(error: Exception) -> str:
    """Return the first line of an error; an address in it loses its password."""
    line = re.sub(r"//[^/@ ]*@", "//", next(iter(str(error).splitlines()), ""))
    return f"{type(error).__name__}: {line if len(line) <= 160 else f'{line[:159]}…'}".removesuffix(".")


class TensorBoardJournal:
    """Event files in ``tensorboard/`` of the run's folder; the configuration is in the HParams tab."""

    def open(self, folder: Path, settings: Mapping[str, Setting]) -> set[int]:
        """Open a further event file; TensorBoard shows all files of the folder as one stream."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        place = folder / "tensorboard"
        there = self._rounds(place) if place.is_dir() else set()
        missing = next(number for number in range(len(there) + 1) if number not in there)
        kept = {number for number in there if number < missing}  # purge_step hides what stands behind a gap
        self._writer = SummaryWriter(str(place), purge_step=missing if there else None)
        experiment, start, self._end = hparams(dict(settings), dict.fromkeys((*_FINAL_METRICS, _MARKS[0]), 0.0))
        for summary in (experiment, start):
            self._writer._get_file_writer().add_summary(summary)
        self._writer.flush()
        return kept

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Write scalars and flush them to disk."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the file, a completed run as a session that succeeded."""
        if status == "completed":
            self._writer._get_file_writer().add_summary(self._end)
        self._writer.close()

    @staticmethod
    def _rounds(place: Path) -> set[int]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
        marks = [mark for mark in _MARKS if mark in events.Tags()["scalars"]]
        return {event.step for mark in marks for event in events.Scalars(mark)}


class MlflowJournal:
    """A run of MLflow, in the store that the user has configured, else in ``mlflow/mlflow.db`` of the run's folder.

    MLflow tells its makers about each use; here that is off, unless MLFLOW_DISABLE_TELEMETRY is set to false. Without a
    configured server nothing leaves the machine.
    """

    def open(self, folder: Path, settings: Mapping[str, Setting]) -> set[int]:
        """Begin a run, or go on with the one whose id stands in ``mlflow/run_id.txt``."""
        for name, value in _MLFLOW_QUIET.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.entities import Param
        from mlflow.telemetry import set_telemetry_client
        from mlflow.utils.file_utils import path_to_local_sqlite_uri

        set_telemetry_client()  # heeds the variable above, also where mlflow had been imported before
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        place = (folder / "mlflow").resolve()
        place.mkdir(exist_ok=True)
        local = not mlflow.is_tracking_uri_set()
        store = path_to_local_sqlite_uri(str(place / "mlflow.db")) if local else None
        self._client = mlflow.MlflowClient(tracking_uri=store)
        former = self._former(place / "run_id.txt")
        self._run = former or self._begin(folder.name, (place / "artifacts").as_uri() if local else None)
        (place / "run_id.txt").write_text(f"{self._run}\n", encoding="utf-8")
        params = [Param(key, str(value)) for key, value in settings.items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + _PARAMS_AT_ONCE])
        marks = _MARKS if former else ()
        return {metric.step for mark in marks for metric in self._client.get_metric_history(self._run, mark)}

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Send numbers in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, number, now, step) for name, number in numbers.items()])

    def close(self, status: str) -> None:
        """Give the run its status in MLflow's words."""
        self._client.set_terminated(self._run, {"completed": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"))

    def _former(self, file: Path) -> str | None:
        """Return the id of the run that was interrupted, if this store has it."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(FileNotFoundError):
            run_id = file.read_text(encoding="utf-8").strip()
            try:
                self._client.update_run(run_id, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                return run_id
        return None

    def _begin(self, name: str, artifacts: str | None) -> str:
        """Begin a run in the user's experiment, else in one called fllm."""
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if experiment_id is None:
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fllm")
            known = self._client.get_experiment_by_name(title)
            experiment_id = known.experiment_id if known else self._client.create_experiment(title, artifacts)
        return str(self._client.create_run(experiment_id, run_name=name).info.run_id)


_MLFLOW_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would tell its makers about each use
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 hold a run up for minutes when its server is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # s
}
_JOURNALS: dict[str, tuple[Callable[[], Journal], tuple[str, ...]]] = {
    "tensorboard": (TensorBoardJournal, ("tensorboard",)),
    "mlflow": (MlflowJournal, ("mlflow", "sqlalchemy", "alembic")),
}
