"""The committed reports in ``reports/reference``: made again from their result.json, they are the same to the byte."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from fllm.report import render, render_comparison
from fllm.results import read_result, rounds_csv
from fllm.sweeps.table import columns_of

ROOT = Path(__file__).parent.parent.parent
REFERENCE = ROOT / "reports" / "reference"
NAMES = ("default-run", "linear-adc", "presets", "tau-bits")
SEEDS = "all-fields"
"""Five runs that differ in the seed alone, and their comparison."""
SUMS = "SHA256SUMS"
DRAWN_BY = ("contourpy", "fonttools", "matplotlib", "numpy", "pillow")


def _pinned() -> bool:
    """Whether what draws is what the committed files were drawn with."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    return all(version(name) == pins[name] for name in DRAWN_BY)


def test_every_reference_is_tested() -> None:
    assert sorted(path.name for path in REFERENCE.iterdir() if path.is_dir()) == sorted([*NAMES, SEEDS])


@pytest.mark.skipif(platform.system() != "Linux", reason="figures are the same to the byte on one platform only")
@pytest.mark.skipif(not _pinned(), reason="figures are the same to the byte with the pinned versions only")
@pytest.mark.parametrize("name", NAMES)
def test_a_reference_is_made_again_to_the_byte(name: str, tmp_path: Path) -> None:
    render(read_result(REFERENCE / name / "result.json"), tmp_path)
    assert_equal_to_the_byte(REFERENCE / name, tmp_path)


@pytest.mark.skipif(platform.system() != "Linux", reason="figures are the same to the byte on one platform only")
@pytest.mark.skipif(not _pinned(), reason="figures are the same to the byte with the pinned versions only")
def test_the_comparison_of_seeds_is_made_again_to_the_byte(tmp_path: Path) -> None:
    runs = _runs_of_seeds()
    render_comparison([read_result(run / "result.json") for run in runs], [run.name for run in runs], tmp_path)
    assert_equal_to_the_byte(REFERENCE / SEEDS, tmp_path)


def _runs_of_seeds() -> list[Path]:
    return [REFERENCE / SEEDS / f"seed{seed}" for seed in range(5)]


def assert_equal_to_the_byte(folder: Path, again: Path) -> None:
    """Compare all that was rendered with what is committed, directly or by its digest."""
    name = folder.name
    made = {path.relative_to(again).as_posix(): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    drawn = sorted(folder.glob("figures/*.svg"))
    assert len(drawn) >= 4
    for path in (folder / "report.md", *drawn):
        relative = path.relative_to(folder).as_posix()
        assert made[relative] == path.read_bytes(), f"{name}: {relative} differs; look at it, then commit it anew"
    sums = [f"{hashlib.sha256(content).hexdigest()}  {path}" for path, content in sorted(made.items())]
    assert (folder / SUMS).read_text(encoding="utf-8").splitlines() == sums


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_is_finished_small_and_made_of_synthetic_data(name: str) -> None:
    folder = REFERENCE / name
    result = read_result(folder / "result.json")
    assert result["status"] == "completed" and result["data"]["synthetic"] is True
    assert result["command"].startswith(("fllm sweep --", "fllm-run --"))
    kept = [path for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".md", ".safetensors", ".svg")]
    assert sum(path.stat().st_size for path in kept) < 1.5e6


def test_federation_beats_each_hospital_alone_on_all_fields() -> None:
    """What the comparison says, read from the results themselves."""
    results = [read_result(run / "result.json") for run in _runs_of_seeds()]
    assert [result["config"]["seed"] for result in results] == list(range(5))
    assert len({repr(sorted((result["config"] | {"seed": 0}).items())) for result in results}) == 1
    assert results[0]["config"]["fields"] == ["history", "examination", "labs", "imaging"]
    for result in results:
        assert result["status"] == "completed" and result["data"]["synthetic"] is True
        alone = result["baselines"]["lora_local"]["macro_f1"]
        assert result["final"]["evaluation"]["hardware"]["macro_f1"]["value"] > alone


def test_tables_of_the_references_agree_with_their_results() -> None:
    run = read_result(REFERENCE / "default-run" / "result.json")
    assert (REFERENCE / "default-run" / "rounds.csv").read_text(encoding="utf-8") == rounds_csv(run)
    for name in ("linear-adc", "presets", "tau-bits"):
        result = read_result(REFERENCE / name / "result.json")
        lines = (REFERENCE / name / "table.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == ",".join(columns_of([key["column"] for key in result["keys"]]))
        assert len(lines) - 1 == len(result["rows"]) == len(result["points"]) * result["dies"]
