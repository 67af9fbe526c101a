"""``fllm data check``: exit codes, one line for each finding, nothing of a record on any stream."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fllm import cli
from tests.data.conftest import FIRST_ID, SECRET, small_release

LABS, LABELS = "laboratory_tests.csv", "pathology_ids.json"
LEVELS = ("ok", "note", "warning", "error")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "release").mkdir()
    return small_release(tmp_path / "release")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Return a function that calls ``fllm data check``: exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fllm", "data", "check", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert SECRET not in out + err and str(FIRST_ID) not in out + err
        return int(stop.value.code or 0), out, err

    return call


def test_a_sound_folder_gives_exit_code_0_and_one_line_for_each_finding(check: Callable, folder: Path) -> None:
    code, out, err = check(folder)
    assert code == 0 and err == ""
    *lines, total = out.splitlines()
    assert all(line.split()[0] in LEVELS for line in lines)
    assert f"ok       {LABS}: 9 rows, 5 columns, 0 kB, 4 admissions; every row was read" in lines
    counts = {level: sum(line.startswith(f"{level} ") for line in lines) for level in LEVELS}
    assert total == ", ".join(f"{level}: {count}" for level, count in counts.items() if count)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: (f / LABS).unlink(), [f"{LABS}: file missing"]),
        (lambda f: (f / LABELS).unlink(), [f"{LABELS}: file missing", "v1.0 does not", "download v1.1"]),
        (lambda f: (f / LABS).write_bytes(b"PK\x03\x04"), [f"{LABS}: this is a zip archive"]),
        (
            lambda f: [(f / LABS).write_text("x"), (f / LABELS).write_text("[]")],
            [f"{LABS}: column 'hadm_id' missing", f"{LABELS}: malformed content"],
        ),
    ],
)
def test_what_would_make_a_number_wrong_gives_exit_code_2(
    check: Callable, folder: Path, damage: Callable[[Path], object], expected: list[str]
) -> None:
    damage(folder)
    code, out, err = check(folder)
    errors = [line for line in out.splitlines() if line.startswith("error ")]
    assert code == 2 and len(errors) == sum(": " in text for text in expected)
    assert all(any(text in line for line in errors) for text in expected)
    assert err.count("\n") == 1 and err.startswith(f"error: {folder}: {len(errors)} ")


@pytest.mark.parametrize("name", ["absent", "file", "empty"])
def test_what_is_no_cohort_gives_one_line_and_exit_code_2(check: Callable, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text(SECRET)
    (tmp_path / "empty").mkdir()
    code, out, err = check(tmp_path / name)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_a_terminal_of_100_columns_is_not_overrun(
    check: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    code, out, _ = check(folder)
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert LABS in lines and max(map(len, lines)) <= 100  # a heading of its own, and columns below


def test_json_holds_all_findings(check: Callable, folder: Path, tmp_path: Path) -> None:
    (folder / LABS).unlink()
    code, out, _ = check(folder, "--json", tmp_path / "found.json")
    text = (tmp_path / "found.json").read_text(encoding="utf-8")
    assert code == 2 and SECRET not in text
    findings = json.loads(text)["findings"]
    assert set(findings[0]) == {"file", "level", "what", "meaning"}
    assert len(findings) == len(out.splitlines()) - 1


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    check: Callable, folder: Path, tmp_path: Path
) -> None:
    code, out, err = check(folder, "--json", tmp_path / "absent" / "found.json")
    assert code == 2 and out == "" and "expected a file in a folder that exists" in err
