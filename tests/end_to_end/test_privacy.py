"""Words that stand in every text, and in every column that no model may see, stay inside; so do identifiers.

One run is a real process, and no socket of it leaves the machine. All patients here are made up, also those whose
numbers could be real.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import Tensor

from fllm import cli
from fllm.config import RunConfig
from fllm.data import FIELDS, build_note, diagnosis_corpus, load_cohort, write_cohort
from fllm.data.cdm_files import COLUMNS
from fllm.data.corpus import note_text
from fllm.data.prompts import Cues
from fllm.federation.task import Hospital, Update
from fllm.observer import Observer
from fllm.preparation import prepare
from fllm.results import read_result
from fllm.sections import CueSettings
from hwsim.native.build import cache_directory
from tests.end_to_end.conftest import Said
from tests.fllm.small import (
    CANARY,
    EXAM_CANARY,
    HIDDEN_CANARIES,
    OUTCOME_CANARIES,
    SHORT,
    TINY,
    as_if_real,
    cohort_with_canaries,
)

UNSEEN = [word.lower() for word in (*OUTCOME_CANARIES.values(), *HIDDEN_CANARIES.values())]
"""Words of columns that no prompt shows."""
WORDS = [CANARY, EXAM_CANARY, *UNSEEN]

AUDITED = """
import sys
log = open(sys.argv.pop(1), "a", buffering=1)

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        log.write(f"{event} {arguments[-1] if event != 'socket.getaddrinfo' else arguments[0]!r}\\n")

sys.addaudithook(hook)
from fllm.cli import run_main
run_main()
"""


def assert_silent(said: str | bytes, data: Path, where: str = "") -> None:
    """Check that a text holds no canary, and no number of an admission of the cohort."""
    content = said.encode() if isinstance(said, str) else said
    lower = content.lower()
    for word in WORDS:
        assert word.encode() not in lower, f"{word} in {where}"
    numbers = {str(case.hadm_id).encode() for case in load_cohort(data).cases}
    assert not numbers & set(re.findall(rb"\d+", content)), f"an identifier in {where}"


def assert_silent_files(folder: Path, data: Path, least: int) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= least
    for path in files:
        assert_silent(path.read_bytes(), data, path.name)


def settings_of(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as options."""
    return [f"--set={key}={value}" for key, value in settings.items()]


@dataclass(frozen=True)
class Finished:
    """A run in a process of its own."""

    code: int
    terminal: str
    stderr: str
    sockets: list[str]
    folder: Path
    data: Path


@pytest.fixture(scope="module")
def finished_process(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = tmp_path_factory.mktemp("process")
    data = cohort_with_canaries(place / "data")
    settings = settings_of(TINY | {"num_rounds": 1, "max_tokens": 128})
    free = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "FLWR_", "TRANSFORMERS"))}
    done = subprocess.run(
        [
            sys.executable, "-c", AUDITED, str(place / "sockets.txt"), *settings,
            "--data_dir", str(data), "--fields", ",".join(FIELDS), "--out", str(place / "out"), "--name", "run",
        ],
        cwd=place,
        env=free | {
            "PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1", "HOME": str(place),
            "XDG_CACHE_HOME": str(cache_directory().parent),  # compiled kernels, which take longer than all else
        },
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    sockets = (place / "sockets.txt").read_text(encoding="utf-8").splitlines()
    return Finished(done.returncode, done.stdout + done.stderr, done.stderr, sockets, place / "out" / "run", data)


def test_run_completes(finished_process: Finished) -> None:
    assert finished_process.code == 0, finished_process.terminal
    assert json.loads((finished_process.folder / "result.json").read_text(encoding="utf-8"))["status"] == "completed"


def test_terminal_shows_results_and_no_word_of_other_libraries(finished_process: Finished) -> None:
    for expected in ("accuracy", "energy", "latency", "report.html", "SYNTHETIC"):
        assert expected in finished_process.terminal
    assert finished_process.stderr == ""


def test_no_socket_leaves_the_machine(finished_process: Finished) -> None:
    loopback = re.compile(r"127\.0\.0\.1|localhost|::1")
    assert [line for line in finished_process.sockets if not loopback.search(line)] == []


def test_the_hook_sees_sockets(tmp_path: Path) -> None:
    """Without this, the test above could not fail."""
    script = AUDITED.partition("from fllm")[0] + "import socket; socket.getaddrinfo('localhost', 1)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], check=True, timeout=60)
    assert "getaddrinfo 'localhost'" in (tmp_path / "log").read_text(encoding="utf-8")


def test_the_canary_was_read(finished_process: Finished) -> None:
    notes = [build_note(case) for case in load_cohort(finished_process.data).cases]
    assert sum(CANARY in note for note in notes) > 0.9 * len(notes)


def test_nothing_of_a_record_on_the_terminal(finished_process: Finished) -> None:
    assert_silent(finished_process.terminal, finished_process.data, "the terminal")


def test_nothing_of_a_record_in_any_file(finished_process: Finished) -> None:
    assert_silent_files(finished_process.folder, finished_process.data, 10)


# What a model may see.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort_with_canaries(tmp_path_factory.mktemp("cohort") / "data", 40)


def test_every_canary_stands_in_its_column(data: Path) -> None:
    """Without this, the tests below could not fail."""
    for (table, column), word in {**OUTCOME_CANARIES, **HIDDEN_CANARIES}.items():
        assert column in COLUMNS[table]
        rows = (data / table).read_text(encoding="utf-8").count(word)
        assert rows > 3, (table, column)


POSITIONS = {name: get_args(field.annotation) for name, field in CueSettings.model_fields.items()}


@pytest.mark.parametrize("fields", [FIELDS, *((name,) for name in FIELDS)], ids=",".join)
def test_no_setting_puts_an_outcome_into_a_note(data: Path, fields: tuple[str, ...]) -> None:
    cohort = load_cohort(data)
    for values in product(*POSITIONS.values()):
        cues = Cues(**dict(zip(POSITIONS, values, strict=True)))
        corpus = diagnosis_corpus(cohort, fields, cues)
        notes = "\n".join(note_text(example.sections, corpus.task) for example in corpus.examples).lower()
        for word in UNSEEN:
            assert word not in notes, cues
        assert (EXAM_CANARY in notes) == (cues.studies == "exam_name" and "imaging" in fields)


def test_no_prompt_of_a_run_holds_an_outcome(data: Path) -> None:
    """What the model is trained, validated and tested on, as its own tokens say."""
    config = RunConfig(**TINY | {"data_dir": str(data), "fields": FIELDS, "validation_fraction": 0.2})
    prepared = prepare(config, Observer())
    prompts = [prompt for own in prepared.encoded.prompts.values() for prompt in own]
    assert len(prompts) == 40
    texts = [str(prepared.bench.loaded.tokenizer.decode(prompt.tokens)).lower() for prompt in prompts]
    assert sum(CANARY in text for text in texts) > 30
    for text in texts:
        assert not any(word in text for word in (*UNSEEN, EXAM_CANARY))
    held = [prompt for hospital in prepared.hospitals for prompt in hospital.prompts]
    assert {p.tokens for p in (*held, *prepared.held_out.test, *prepared.held_out.validation)} == {
        prompt.tokens for prompt in prompts
    }
    assert_silent(json.dumps(prepared.record), data, "the record")


# Other commands, and runs that end early.


def test_check_of_a_folder_shows_nothing_of_a_record(data: Path, tmp_path: Path, command: Callable[..., Said]) -> None:
    said = command("data", "check", data, "--json", tmp_path / "found.json")
    assert said.code == 0, said.terminal
    assert "radiology_reports.csv" in said.stdout
    assert_silent(said.terminal, data, "the terminal")
    assert_silent((tmp_path / "found.json").read_bytes(), data, "found.json")


@pytest.mark.usefixtures("_without_pages")
def test_interrupted_and_resumed_run_says_nothing_of_a_record(
    data: Path, tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    settings = settings_of(SHORT | {"lora_baselines": "[centralised]"})
    with monkeypatch.context() as patch:
        patch.setattr("fllm.runs.final_facts", stop)
        said = command("--data-dir", data, *settings, "--out", tmp_path, "--name", "run")
    assert said.code == 130
    assert f"fllm-run --resume {tmp_path / 'run'}" in said.stderr
    assert_silent(said.terminal, data, "the terminal")
    assert_silent_files(tmp_path / "run", data, 4)
    said = command("--resume", tmp_path / "run")
    assert said.code == 0, said.terminal
    assert_silent(said.terminal, data, "the terminal")
    assert_silent_files(tmp_path / "run", data, 4)


@pytest.mark.usefixtures("_without_pages")
@pytest.mark.parametrize("failing", [1, 3])
def test_error_of_a_hospital_is_told_by_its_type_alone(
    data: Path, tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    trained = Hospital.train

    def train(
        hospital: Hospital, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0
    ) -> Update:
        if hospital.partition < failing:
            case = load_cohort(data).cases[0]
            raise RuntimeError(f"{CANARY} {case.hadm_id} {case.history}")
        return trained(hospital, adapter, server_round, proximal_mu=proximal_mu)

    monkeypatch.setattr(Hospital, "train", train)
    said = command("--data-dir", data, *settings_of(SHORT), "--out", tmp_path, "--name", "run")
    record = read_result(tmp_path / "run" / "result.json")
    assert_silent(said.terminal, data, "the terminal")
    assert_silent_files(tmp_path / "run", data, 2)
    if failing == 1:
        assert (said.code, record["status"]) == (0, "completed")
        assert record["rounds"][1]["failures"] == ["RuntimeError"]
        assert re.search(r"client \d \(.+\) was left out: RuntimeError", said.stdout)
    else:
        assert (said.code, record["status"]) == (1, "interrupted")
        assert "no client sent a usable update (RuntimeError)" in said.stderr


@pytest.mark.usefixtures("_without_pages")
def test_error_in_a_baseline_is_told_by_its_place_and_type(
    data: Path, tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(f"{CANARY}: {load_cohort(data).cases[0].history}")

    monkeypatch.setattr("fllm.lora_baselines._trained", fail)
    settings = settings_of(SHORT | {"lora_baselines": "[local]"})
    said = command("--data-dir", data, *settings, "--out", tmp_path, "--name", "run")
    assert said.code == 1
    assert "internal error: ValueError" in said.stderr and "lora_baselines.py" in said.stderr
    assert_silent(said.terminal, data, "the terminal")
    assert_silent_files(tmp_path / "run", data, 2)


# Few patients.


@dataclass(frozen=True)
class Real:
    """A run on made-up patients whose numbers could be real."""

    result: dict[str, Any]
    folder: Path
    terminal: str
    data: Path


@pytest.fixture
def real(tmp_path: Path, command: Callable[..., Said]) -> Real:
    data = as_if_real(write_cohort(tmp_path / "data", 150, n_hospitals=3, seed=0))
    settings = SHORT | {"generation": "true", "validation_fraction": 0.1, "cues.studies": "hidden"}
    said = command(
        "--data-dir", data, *settings_of(settings), "--partition", "age", "--out", tmp_path, "--name", "run",
    )  # fmt: skip
    assert said.code == 0, said.terminal
    result = read_result(tmp_path / "run" / "result.json")
    return Real(result, tmp_path / "run", said.terminal, data)


@pytest.mark.usefixtures("_sketched")
def test_no_number_of_few_real_patients_is_told(real: Real) -> None:
    data, evaluation = real.result["data"], real.result["final"]["evaluation"]
    assert (data["synthetic"], data["smallest_cell"], data["partition"]["name"]) == (False, 5, "age")
    counts = [data["label_counts"], data["test_label_counts"]]
    counts += [client[key] for client in data["clients"] for key in ("label_counts", "test_label_counts")]
    counts += [{"train": client["num_train"], "test": client["num_test"]} for client in data["clients"]]
    scored = [evaluation, evaluation["generation"]]
    counts += [{"cases": row["cases"]} for part in scored for device in ("ideal", "hardware")
               for row in part[device]["recall"].values()]  # fmt: skip
    counts += [{"cases": row["cases"]} for device in ("ideal", "hardware") for row in evaluation[device]["clients"]]
    shown = [count for table in counts for count in table.values()]
    assert None in shown and any(shown)
    assert not [count for count in shown if count is not None and 0 < count < 5]
    for device in ("ideal", "hardware"):
        told = [row["cases"] is not None for row in evaluation[device]["clients"]]
        assert told == [bool(client["num_test"]) for client in data["clients"]]  # no way round
    words = " ".join([*data["warnings"], *real.result["warnings"], real.terminal])
    assert not re.search(r"\b[1-4] (cases|patients|admissions|histories|examinations)\b", words)

    pages = [(real.folder / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")]
    for page in pages:
        assert "fewer than 5 real cases are hidden" in " ".join(page.replace("\N{NO-BREAK SPACE}", " ").split())
        assert "SYNTHETIC" not in page
    rows = [line for line in pages[0].splitlines() if line.startswith("|")]
    first = next(number for number, line in enumerate(rows) if "appendicitis" in line and "Client" in line)
    cells = [cell.strip() for line in rows[first + 2 : first + 14] for cell in line.strip("|").split("|")[1:]]
    assert "hidden" in cells
    assert not [cell for cell in cells if cell in ("1", "2", "3", "4")]
    assert "SYNTHETIC" not in real.terminal
    assert_silent(real.terminal, real.data, "the terminal")
    assert_silent_files(real.folder, real.data, 10)
