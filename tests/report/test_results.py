"""result.json and rounds.csv: what is written is what is read, and every bad file is one clear line."""

import copy
import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from device_models.errors import InputError
from fllm.results import ROUND_COLUMNS, read_result, write_result, write_rounds_csv


def test_what_is_written_is_read_back(tmp_path: Path, result: dict[str, Any]) -> None:
    write_result(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_bytes_do_not_depend_on_the_order_of_keys(tmp_path: Path, result: dict[str, Any]) -> None:
    write_result(tmp_path / "a.json", result)
    write_result(tmp_path / "b.json", dict(reversed(result.items())))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_result(path, result)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_result(path, result | {"name": "other"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused_on_both_ways(tmp_path: Path, result: dict[str, Any]) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(path, result | {"name": math.nan})
    assert not path.exists()
    path.write_text(json.dumps(result | {"name": math.nan}))
    with pytest.raises(InputError, match="finite number or null; received 'NaN'"):
        read_result(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"schema_version": 1,\n "status"', "line 2, column 10: not JSON"),
        (b"[" * 200_000, "nested too deeply|not JSON"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"[]", "not a result; expected a JSON object; received 'list'"),
        (b"{}", "unknown schema_version; expected 1; received None"),
        (b'{"schema_version": 2}', "unknown schema_version; expected 1; received 2"),
        (b'{"schema_version": true}', "unknown schema_version"),
        (b'{"schema_version": 1}', "bad value of 'status'; expected a string; received 'no such key'"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_result(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["status", "name", "config", "data", "model", "device", "rounds"])
def test_a_wrong_type_names_its_key(tmp_path: Path, result: dict[str, Any], key: str) -> None:
    write_result(tmp_path / "result.json", result | {key: 5})
    with pytest.raises(InputError, match=f"bad value of '{key}'.*received 'int'"):
        read_result(tmp_path / "result.json")


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: no such file") as error:
        read_result(tmp_path / "nothing.json")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_result(tmp_path)


def test_rounds_csv_has_fixed_columns_and_one_row_a_round(tmp_path: Path, result: dict[str, Any]) -> None:
    write_rounds_csv(tmp_path / "rounds.csv", result)
    rows = list(csv.DictReader((tmp_path / "rounds.csv").read_text(encoding="utf-8").splitlines()))
    assert tuple(rows[0]) == ROUND_COLUMNS
    assert ROUND_COLUMNS == (
        "round", "clients", "train_loss_nat", "accuracy_ideal", "macro_f1_ideal", "perplexity_ideal",
        "accuracy_hardware_mean", "accuracy_hardware_std", "macro_f1_hardware_mean", "macro_f1_hardware_std",
        "perplexity_hardware_mean", "perplexity_hardware_std", "dies", "uplink_bytes", "downlink_bytes", "tokens",
        "energy_j", "energy_per_token_j", "latency_per_token_s", "energy_arrays_j", "energy_digital_accelerator_j",
        "energy_network_j", "aggregation_error",
    )  # fmt: skip
    assert len(rows) == len(result["rounds"])
    assert rows[0]["train_loss_nat"] == "" == rows[0]["energy_per_token_j"]
    assert {rows[0][f"energy_{place}_j"] for place in ("arrays", "digital_accelerator", "network")} == {""}
    for place in ("arrays", "digital accelerator", "network"):
        recorded = result["rounds"][2]["training"]["lines_j"][place]["nominal"]
        assert float(rows[2][f"energy_{place.replace(' ', '_')}_j"]) == recorded
    assert float(rows[3]["energy_per_token_j"]) == result["rounds"][3]["energy_per_token_j"]
    assert float(rows[3]["accuracy_hardware_mean"]) == result["rounds"][3]["hardware"]["accuracy"]["mean"]


def test_rounds_csv_knows_neither_time_nor_place(tmp_path: Path, result: dict[str, Any]) -> None:
    other = copy.deepcopy(result)
    other["created"] = "2030-01-01T00:00:00+00:00"
    other["final"]["wall_seconds"] = 1e6
    for row in other["rounds"]:
        row["wall_seconds"] = 3.0
    write_rounds_csv(tmp_path / "a.csv", result)
    write_rounds_csv(tmp_path / "b.csv", other)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()


def test_rounds_csv_without_rounds_is_its_header(tmp_path: Path, result: dict[str, Any]) -> None:
    write_rounds_csv(tmp_path / "rounds.csv", result | {"rounds": []})
    assert (tmp_path / "rounds.csv").read_text() == ",".join(ROUND_COLUMNS) + "\n"
