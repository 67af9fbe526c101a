"""The table on disk: whole after a kill at any byte, exact in every number, the same in any order of work."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_models import InputError
from device_models.costs import PARTS
from fllm.sweeps.table import FACTS, FLAGS, METRICS, OK, Table, bits, columns_of, energy_column

COLUMNS = columns_of(["retention.tau_s", "device_model"])
WORDS = ["device_model"]


def row(point: int, die: int | None = 0, **values: Any) -> dict[str, Any]:
    """Return a row with something in every column."""
    filled: dict[str, Any] = dict.fromkeys(COLUMNS) | dict.fromkeys((*METRICS, *FACTS), 0.1 + point / 3)
    filled |= {"point": point, "seed": 0, "die": die, "status": OK, "retention.tau_s": 0.0002, "device_model": "ideal"}
    return filled | {"correct": "0e1", "correct_ideal": "12", "settings_sha256": "123456789012"} | values


def table(path: Path) -> Table:
    return Table(path, COLUMNS, WORDS)


def test_columns_are_those_of_the_contract() -> None:
    assert COLUMNS[:5] == ("point", "seed", "die", "status", "reason")
    assert COLUMNS[-3:] == ("correct", "correct_ideal", "settings_sha256")
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert {energy_column(part) for part in PARTS} <= set(COLUMNS)
    assert energy_column("LM head and other digital layers") == "energy_lm_head_and_other_digital_layers_j"
    assert energy_column("norms, activations, scalers") == "energy_norms_activations_scalers_j"
    assert len({energy_column(part) for part in PARTS}) == len(PARTS)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        row(0),
        row(1, die=None, status="failed", reason='voltages, "out of order"; expected v_min < v_max'),
        row(2, device_model="größe, mit Komma.yaml"),
        row(3, device_model="5"),
        row(4, device_model="1e-3"),
        row(5, device_model="nan"),
        row(6, device_model=" spaces "),
        row(7, device_model='"quoted"'),
        row(8, device_model="two\nlines"),
        row(9, **{"retention.tau_s": None, "accuracy": None, "correct": "00", "correct_ideal": "1e5"}),
        row(10, **{"retention.tau_s": 3, "settings_sha256": "000000000012"}),
    ]
    written = table(tmp_path / "table.csv")
    for each in rows:
        written.append([each])
    read = table(tmp_path / "table.csv")
    assert read.rows == written.rows == rows
    for found, expected in zip(read.rows, rows, strict=True):
        assert [type(found[name]) for name in COLUMNS] == [type(expected[name]) for name in COLUMNS]
    assert json.dumps(read.rows) == json.dumps(rows)


@settings(max_examples=200, deadline=None)
@given(numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_numbers_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]) -> None:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    table(path).append([row(i, perplexity=number) for i, number in enumerate(numbers)])
    found = [each["perplexity"] for each in table(path).rows]
    assert [x.hex() for x in found] == [x.hex() for x in numbers]
    assert [math.copysign(1, x) for x in found] == [math.copysign(1, x) for x in numbers]


WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(words=st.lists(WORD, min_size=1, max_size=4))
def test_any_word_comes_back(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    table(path).append([row(i, device_model=word) for i, word in enumerate(words)])
    assert [each["device_model"] for each in table(path).rows] == words


def test_other_programs_read_the_same(tmp_path: Path) -> None:
    import pandas

    table(tmp_path / "table.csv").append([row(0), row(1, accuracy=None)])
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert float(lines[1]["macro_f1"]) == row(1)["macro_f1"]
    frame = pandas.read_csv(tmp_path / "table.csv")
    assert list(frame.columns) == list(COLUMNS)
    assert frame["accuracy"].isna().tolist() == [False, True]


@pytest.mark.parametrize("last", [row(2), row(2, device_model="größe, 5 µm.yaml"), row(2, device_model="two\nlines")],
                         ids=["plain", "not ascii", "two lines"])  # fmt: skip
def test_row_that_was_cut_off_at_any_byte_is_dropped(tmp_path: Path, last: dict[str, Any]) -> None:
    path = tmp_path / "table.csv"
    written = table(path)
    written.append([row(0), row(1)])
    before = path.read_bytes()
    written.append([last])
    whole = path.read_bytes()
    for cut in range(len(before), len(whole)):
        path.write_bytes(whole[:cut])
        found = table(path)
        assert found.rows == [row(0), row(1)], f"cut off {len(whole) - cut} bytes before the end"
        assert path.read_bytes() == before
        found.append([last])
        assert path.read_bytes() == whole
    assert table(path).rows == [row(0), row(1), last]


def test_several_rows_that_were_cut_off_lose_the_last_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    table(path).append([row(0), row(1), row(2)])
    path.write_bytes(path.read_bytes()[:-1])
    assert [each["point"] for each in table(path).rows] == [0, 1]


def test_row_of_another_number_of_columns_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    table(path).append([row(0)])
    with path.open("a", encoding="utf-8") as file:
        file.write("1,0,0,ok\n")
    assert [each["point"] for each in table(path).rows] == [0]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("content", ["", "point,seed\n", "no table at all", ",".join(COLUMNS[:-1]) + "\n"])
def test_table_of_another_sweep_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"table\.csv: not the table of this sweep; expected \d+ columns"):
        table(path)
    assert path.read_text(encoding="utf-8") == content


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00\x01\n\xff")
    with pytest.raises(InputError, match="not the table of this sweep"):
        table(tmp_path / "table.csv")


def test_order_of_work_leaves_no_trace(tmp_path: Path) -> None:
    rows = [row(0, 0), row(0, 1), row(1, None, status="failed"), row(1, 0), row(10, 0), row(2, 0, seed=1), row(2, 5)]
    first, second = table(tmp_path / "first.csv"), table(tmp_path / "second.csv")
    first.append(rows)
    for each in reversed(rows):
        second.append([each])
    first.sort()
    second.sort()
    assert first.path.read_bytes() == second.path.read_bytes()
    assert [(r["point"], r["seed"], r["die"]) for r in table(first.path).rows] == [
        (0, 0, 0), (0, 0, 1), (1, 0, None), (1, 0, 0), (2, 0, 5), (2, 1, 0), (10, 0, 0),
    ]  # fmt: skip


def test_some_rows_are_kept(tmp_path: Path) -> None:
    made = table(tmp_path / "table.csv")
    made.append([row(0), row(1, None, status="failed", reason="why"), row(2)])
    made.keep(lambda each: each["status"] == OK)
    assert [each["point"] for each in made.rows] == [0, 2]
    assert table(made.path).rows == made.rows


def test_rows_are_on_disk_when_append_returns(tmp_path: Path) -> None:
    made = table(tmp_path / "table.csv")
    for number in range(3):
        made.append([row(number)])
        assert len((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()) == 2 + number


def test_nothing_is_left_beside_the_table(tmp_path: Path) -> None:
    made = table(tmp_path / "table.csv")
    made.append([row(0)])
    made.sort()
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], ""),
        ([1, 0, 0, 0], "8"),
        ([0, 0, 0, 1], "1"),
        ([1], "8"),
        ([0, 1], "4"),
        ([1, 0, 1, 0, 1], "a8"),
        ([0, 0, 0, 0, 1], "08"),
        ([0.0] * 9, "000"),
        ([1.0] * 8, "ff"),
    ],
)
def test_first_case_is_the_highest_bit_of_the_first_digit(flags: list[float], text: str) -> None:
    assert bits(flags) == text


@given(flags=st.lists(st.booleans(), max_size=60))
def test_bits_can_be_read_again(flags: list[bool]) -> None:
    text = bits(flags)
    assert len(text) == -(-len(flags) // 4)
    read = [int(digit, 16) >> (3 - bit) & 1 for digit in text for bit in range(4)]
    assert read[: len(flags)] == flags
    assert not any(read[len(flags) :])


def test_flags_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    """``0e1`` and ``12`` are bits of cases, no numbers."""
    table(tmp_path / "table.csv").append([row(0)])
    assert [table(tmp_path / "table.csv").rows[0][name] for name in FLAGS] == ["0e1", "12"]
