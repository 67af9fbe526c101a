"""``fllm report``: pages again from result.json alone, comparisons, bad input."""

import webbrowser
from pathlib import Path

import pytest

from fllm.results import read_result
from tests.fllm.small import copied, edit_json

EXAMPLE = Path(__file__).parent.parent / "report" / "example_result.json"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Return a folder with the result of a run and nothing else."""
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "result.json").write_bytes(EXAMPLE.read_bytes())
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run ``fllm report`` and return its exit code."""
    from fllm import cli

    monkeypatch.setattr("sys.argv", ["fllm", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.usefixtures("_sketched")
def test_a_page_is_made_again_byte_for_byte(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, run_folder) == 0
    first = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    for path in first:
        if path.name != "result.json":
            path.unlink()
    assert call(monkeypatch, run_folder) == 0
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == first
    assert {"report.html", "report.md"} <= {path.name for path in first}


@pytest.mark.usefixtures("_sketched")
def test_several_runs_are_compared(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(run_folder, run_folder.parent / "two")
    config = read_result(other / "result.json")["config"]
    edit_json(other / "result.json", config=config | {"num_rounds": 77})
    assert call(monkeypatch, run_folder, other) == 0
    page = run_folder.parent / "comparison-one-two" / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    text = page.read_text(encoding="utf-8")
    assert "num_rounds" in text and "77" in text
    assert (run_folder / "report.html").exists() and (other / "report.html").exists()


@pytest.mark.usefixtures("_sketched")
def test_out_names_the_folder_of_a_comparison(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(run_folder, run_folder.parent / "two")
    target = run_folder.parent / "mine"
    assert call(monkeypatch, run_folder, other, "--out", target) == 0
    assert (target / "report.html").exists() and (target / "report.md").exists()
    assert call(monkeypatch, run_folder, "--out", target) == 2
    assert "two or more to compare" in capsys.readouterr().err


@pytest.mark.usefixtures("_sketched")
def test_open_shows_the_page(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    assert call(monkeypatch, run_folder, "--open") == 0
    assert shown == [(run_folder / "report.html").resolve().as_uri()]


def test_what_is_no_result_is_refused_before_anything_is_written(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = run_folder.parent / "bad"
    bad.mkdir()
    (bad / "result.json").write_text("{}", encoding="utf-8")
    assert call(monkeypatch, run_folder, bad) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "unknown schema_version" in line
    edit_json(bad / "result.json", schema_version=1, kind="poem")
    assert call(monkeypatch, bad) == 2
    assert "unknown kind; expected a run or a sweep; received 'poem'" in capsys.readouterr().err
    assert not (run_folder / "report.html").exists()
