"""Bad input on the command line: one line on stderr, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from device_models.loading import preset_folder
from device_models.strict_yaml import read_yaml
from fllm import cli
from fllm.data.cdm_files import COLUMNS
from tests.fllm.small import (
    CANARY,
    OUTCOME_NAMES,
    SHIPPED,
    TINY,
    cohort_with_canary,
    copied,
    edit_column,
    edit_json,
    rewrite,
    table_of_texts,
)

SETTINGS = [f"--set={key}={TINY[key]}" for key in ("num_cases", "local_steps", "threads")]
"""Those that have no option of their own: ``--set`` wins over options."""


class Bad:
    """Calls the command line in this process and checks that it refuses as it should."""

    def __init__(self, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self._capsys, self._monkeypatch = out, capsys, monkeypatch

    def __call__(self, *arguments: str | Path, entry: Callable[[], None] = cli.run_main) -> str:
        given = [*map(str, arguments)]
        if entry is cli.run_main:
            given = [*SETTINGS, *([] if "--resume" in given else ["--out", str(self.out)]), *given]
        self._monkeypatch.setattr(sys, "argv", ["fllm", *given])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            entry()
        stdout, stderr = self._capsys.readouterr()
        assert stop.value.code == 2
        assert stderr.startswith("error: ")
        assert len(stderr.splitlines()) == 1, stderr
        assert stderr.endswith("\n")
        assert CANARY not in (stdout + stderr).lower()
        assert not re.search(r"\b9\d{7}\b", stdout + stderr), "a number of an admission"
        assert not self.out.exists(), sorted(self.out.rglob("*"))
        return stderr


@pytest.fixture
def bad(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bad:
    return Bad(tmp_path / "out", capsys, monkeypatch)


@pytest.fixture
def device_file(tmp_path: Path) -> Callable[[str, object], Path]:
    """Return a function that writes the shipped device file with one value changed."""

    def write(key: str, value: object) -> Path:
        tree: dict[str, Any] = read_yaml(preset_folder() / "gaincell_28nm.yaml")
        section, _, name = key.partition(".")
        like = next(iter(tree[section].values()))
        tree[section][name] = {**tree[section].get(name, like), "value": value}
        file = tmp_path / "device.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--num-clients", "0"], "num_clients"),
        (["--num_clients", "-1"], "num_clients"),
        (["--num-clients", "three"], "--num-clients"),
        (["--num-clients"], "--num-clients"),
        (["--num-rounds", "0"], "num_rounds"),
        (["--batch_size", "0"], "batch_size"),
        (["--seed", "-1"], "seed"),
        (["--bogus"], "--bogus"),
        (["stray"], "stray"),
        (["--fields", "history,icd"], "'icd' leaks the answer"),
        (["--fields", ""], "fields"),
        (["--token-period", "10 V"], "token_period"),
        (["--token-period", "0 us"], "token_period"),
        (["--token-period", "10"], "token_period"),
        (["--set", "lora.rank=3"], "lora.rank: unknown key"),
        (["--set", "seed"], "key=value"),
        (["--set", "seed=["], "not valid YAML"),
        (["--set", "device.readout.bitz=3"], "did you mean readout.bits"),
        (["--set", "device.readout.bits=99"], "readout.bits"),
        (["--set", "device.retention.tau=5"], "retention.tau"),
        (["--config", "absent.yaml"], "absent.yaml: no such file"),
        (["--device-model", "absent.yaml"], "absent.yaml: no such device file"),
        (["--device-model", "gaincell_28mm"], "did you mean gaincell_28nm"),
        (["--model", "absent"], "absent: no such model folder"),
        (["--data-dir", "absent"], "absent: the data folder does not exist"),
        (["--network", "wifii"], "wifii: no such network"),
        (["--num-clients", "59"], "number of clients"),
        (["--num-clients", "61"], "more hospitals than cases"),
        (["--min-clients", "0"], "min_clients"),
        (["--min-clients", "99"], "min_clients is more than"),
        (["--client-timeout", "0 s"], "client_timeout"),
        (["--client-timeout", "10 V"], "client_timeout"),
        (["--resume", "absent"], "--resume"),
        (["--task", "diagnose"], "task"),
        (["--partition", "hospitals"], "partition"),
        (["--set", "cues.mask=no"], "cues.mask"),
        (["--set", "lora_baselines=local"], "lora_baselines"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_option_is_named(bad: Bad, arguments: list[str], named: str) -> None:
    assert named in bad(*arguments)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("readout.bitz", 5, "unknown key"),
        ("retention.tau", "5 mV", "does not convert"),
        ("retention.tau", 5, "not a bare value"),
        ("retention.tau", "5", "the unit is missing"),
        ("readout.bits", 0, "readout.bits"),
    ],
)
def test_bad_device_file_is_named(bad: Bad, device_file: Callable, key: str, value: object, named: str) -> None:
    file = device_file(key, value)
    message = bad("--device-model", file)
    assert f"{file}: {key}" in message
    assert named in message


@pytest.mark.parametrize("content", ["", "[]", "a: [", "schema_version: 9\n", "\x00"])
def test_file_that_is_no_device_file(bad: Bad, tmp_path: Path, content: str) -> None:
    file = tmp_path / "device.yaml"
    file.write_text(content, encoding="utf-8")
    assert str(file) in bad("--device-model", file)


@pytest.fixture(scope="module")
def canary_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort_with_canary(tmp_path_factory.mktemp("cohort") / "data")


@pytest.fixture
def data(canary_cohort: Path, tmp_path: Path) -> Path:
    return copied(canary_cohort, tmp_path / "data")


HISTORY, EXAMINATION = "history_of_present_illness.csv", "physical_examination.csv"
LABS, RADIOLOGY = "laboratory_tests.csv", "radiology_reports.csv"


def without_file(data: Path) -> str:
    (data / HISTORY).unlink()
    return f"{HISTORY}: file missing"


def empty_csv(data: Path) -> str:
    (data / HISTORY).write_text("", encoding="utf-8")
    return f"{HISTORY}: the file is empty"


def header_alone(data: Path) -> str:
    (data / HISTORY).write_text("hadm_id,hpi\n", encoding="utf-8")
    return f"{HISTORY}: no rows"


def without_header(data: Path) -> str:
    text = (data / HISTORY).read_text(encoding="utf-8")
    (data / HISTORY).write_text(text.partition("\n")[2], encoding="utf-8")
    return f"{HISTORY}: column 'hadm_id' missing"


def open_quote(data: Path) -> str:
    with (data / HISTORY).open("a", encoding="utf-8") as file:
        file.write(f'90999999,"{CANARY} without end')
    return f"{HISTORY}, line "


def one_field_more(data: Path) -> str:
    with (data / HISTORY).open("a", encoding="utf-8") as file:
        file.write(f"90999999,{CANARY},{CANARY}\n")
    return f"{HISTORY}, row 61: malformed CSV"


def text_for_an_id(data: Path) -> str:
    with (data / EXAMINATION).open("a", encoding="utf-8") as file:
        file.write(f"{CANARY},soft\n")
    return f"{EXAMINATION}, row 61: hadm_id is no whole number"


def other_encoding(data: Path) -> str:
    with (data / HISTORY).open("ab") as file:
        file.write(f"90999999,{CANARY} \xe9\n".encode("latin-1"))
    return f"{HISTORY}: byte "


def unknown_diagnosis(data: Path) -> str:
    edit_json(data / "pathology_ids.json", appendictis=[])
    return "pathology_ids.json: unknown diagnosis 'appendictis'"


def text_for_a_diagnosis(data: Path) -> str:
    edit_json(data / "pathology_ids.json", **{f"{CANARY}: a sentence of a note.": []})
    return "pathology_ids.json: a key that is none of the diagnoses"


def broken_labels(data: Path) -> str:
    (data / "pathology_ids.json").write_text(f'{{"{CANARY}', encoding="utf-8")
    return "pathology_ids.json"


def no_labels(data: Path) -> str:
    (data / "pathology_ids.json").unlink()
    return "pathology_ids.json: file missing"


def renamed_column(data: Path) -> str:
    text = (data / LABS).read_text(encoding="utf-8")
    (data / LABS).write_text(text.replace("valuestr", "value", 1), encoding="utf-8")
    return f"{LABS}: column 'valuestr' missing"


def admission_twice(data: Path) -> str:
    with (data / HISTORY).open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    rewrite(data / HISTORY, header, [*rows, [rows[4][0], CANARY]])
    return f"{HISTORY}, row 61: duplicate hadm_id"


def report_twice(data: Path) -> str:
    with (data / RADIOLOGY).open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    rewrite(data / RADIOLOGY, header, [*rows, rows[0]])
    return f"{RADIOLOGY}, row {len(rows) + 1}: "


def label_twice(data: Path) -> str:
    labels = json.loads((data / "pathology_ids.json").read_text(encoding="utf-8"))
    labels["appendicitis"].append(labels["pancreatitis"][0])
    edit_json(data / "pathology_ids.json", **labels)
    return "pathology_ids.json: "


def fraction_for_an_id(data: Path) -> str:
    edit_column(data / LABS, "itemid", lambda cell: f"{cell}.5")
    return f"{LABS}, row 1: itemid is no whole number"


def text_for_a_limit(data: Path) -> str:
    edit_column(data / LABS, "ref_range_upper", lambda _: CANARY)
    return f"{LABS}, row 1: ref_range_upper is no number"


def archive_for_a_table(data: Path) -> str:
    with zipfile.ZipFile(data / EXAMINATION, "w") as archive:
        archive.writestr(EXAMINATION, CANARY)
    return f"{EXAMINATION}: this is a zip archive"


def gzip_for_a_table(data: Path) -> str:
    (data / RADIOLOGY).write_bytes(gzip.compress((data / RADIOLOGY).read_bytes()))
    return f"{RADIOLOGY}: this is gzip-compressed"


def no_rows_of_tests(data: Path) -> str:
    text = (data / LABS).read_text(encoding="utf-8")
    (data / LABS).write_text(text.partition("\n")[0] + "\n", encoding="utf-8")
    return f"{LABS}: no rows"


def fabricated_cases_among_others(data: Path) -> str:
    text = (data / RADIOLOGY).read_text(encoding="utf-8")
    (data / RADIOLOGY).write_text(text.replace("SYN-", "N-", 1), encoding="utf-8")
    return f"{HISTORY}: fabricated cases are mixed with others"


@pytest.mark.parametrize(
    "breakage",
    [
        without_file, empty_csv, header_alone, without_header, open_quote, one_field_more, text_for_an_id,
        other_encoding, unknown_diagnosis, text_for_a_diagnosis, broken_labels, no_labels, renamed_column,
        admission_twice, report_twice, label_twice, fraction_for_an_id, text_for_a_limit, archive_for_a_table,
        gzip_for_a_table, no_rows_of_tests, fabricated_cases_among_others,
    ],
)  # fmt: skip
def test_bad_data_is_named_without_its_text(bad: Bad, data: Path, breakage: Callable[[Path], str]) -> None:
    expected = breakage(data)
    assert expected in bad("--data-dir", data)


@pytest.mark.parametrize("name", [*COLUMNS, "pathology_ids.json"])
def test_every_table_must_be_there(bad: Bad, data: Path, name: str) -> None:
    """Also those that are never opened: an incomplete download is the likely cause."""
    (data / name).unlink()
    assert f"{name}: file missing" in bad("--data-dir", data)


@pytest.mark.parametrize("name", [*OUTCOME_NAMES, "pathology_ids.json"])
def test_no_outcome_can_be_a_field(bad: Bad, name: str) -> None:
    assert f"'{name}' leaks the answer" in bad("--fields", f"history,{name}")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return table_of_texts(tmp_path / "weather.csv")


def test_table_that_does_not_fit_its_columns(bad: Bad, table: Path) -> None:
    csv_task = ("--task", "csv", "--data-file", table)
    assert "column 'txt' missing" in bad(*csv_task, "--text-column", "txt")
    assert "the model must not see" in bad(*csv_task, "--text-column", "label")
    assert "is this the label column?" in bad(*csv_task, "--label-column", "text", "--text-column", "station")
    assert "is this the client column?" in bad(*csv_task, "--client-column", "text")
    assert "names no part of the data" in bad(*csv_task, "--set=split=column", "--set=split_column=station")
    assert "one table at a time" in bad(*csv_task, "--data-file", table)


def test_table_that_is_broken(bad: Bad, tmp_path: Path, table: Path) -> None:
    csv_task = ("--task", "csv", "--data-file", table)
    whole = table.read_text(encoding="utf-8")
    for content, what in (
        ("", "the file is empty"),
        ("text,label\n", "no rows"),
        (whole + f'"{CANARY} without end', "weather.csv"),
        (whole + f"{CANARY},calm,x,train,more\n", "weather.csv, row 61"),
        (whole + f"{CANARY},,x,train\n", "column 'label' is empty in 1 of 61 rows"),
    ):
        table.write_text(content, encoding="utf-8")
        assert what in bad(*csv_task), what
    assert "absent.csv" in bad("--task", "csv", "--data-file", tmp_path / "absent.csv")
    assert "unknown kind of table" in bad("--task", "csv", "--data-file", tmp_path / "data.parquet")


def test_texts_that_are_none(bad: Bad, tmp_path: Path, table: Path) -> None:
    assert "unknown kind of text file" in bad("--task", "text", "--data-file", table)
    (tmp_path / "note.txt").write_text(CANARY, encoding="utf-8")
    assert "too few cases to split" in bad("--task", "text", "--data-file", tmp_path / "note.txt")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--task", "csv"], "data_files"),
        (["--data-file", "notes.csv"], "data_dir"),
        (["--task", "text", "--data-file", "notes.txt", "--set", "generation=true"], "generation"),
        (["--task", "csv", "--data-file", "notes.csv", "--partition", "age"], "clinical cases"),
        (["--set", "calibration=temperature"], "validation_fraction"),
        (["--set", "split=kfold", "--set", "fold=5"], "fold out of range"),
        (["--set", "split=lacdm", "--num-clients", "2"], "too few cases for the published split"),
        (["--partition", "dirichlet", "--num-clients", "30"], "too few training examples for each client"),
        (["--set", "field_tokens.lab=3"], "a budget for no field, 'lab'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_do_not_go_together(bad: Bad, arguments: list[str], named: str) -> None:
    assert named in bad(*arguments)


def test_data_folder_that_is_a_file(bad: Bad, data: Path) -> None:
    assert "this is a file" in bad("--data-dir", data / HISTORY)


def no_weights(model: Path) -> str:
    (model / "model.safetensors").unlink()
    return "no weights"


def broken_config(model: Path) -> str:
    (model / "config.json").write_text("{", encoding="utf-8")
    return "not a valid JSON file"


def half_the_weights(model: Path) -> str:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])
    return "weights cannot be read"


def no_tokenizer(model: Path) -> str:
    (model / "tokenizer.json").unlink()
    return "no loadable tokenizer"


@pytest.mark.parametrize("breakage", [no_weights, broken_config, half_the_weights, no_tokenizer])
def test_bad_model_folder_is_named(bad: Bad, model_copy: Path, breakage: Callable[[Path], str]) -> None:
    expected = breakage(model_copy)
    message = bad("--model", model_copy)
    assert expected in message
    assert str(model_copy) in message


def test_resume_of_a_folder_without_a_run(bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SETTINGS", [])
    assert "result.json: no such file" in bad("--resume", tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_resume_of_a_broken_record(bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(f"{__name__}.SETTINGS", [])
    (tmp_path / "result.json").write_text(content, encoding="utf-8")
    assert "result.json" in bad("--resume", tmp_path)


def test_resume_takes_no_settings(bad: Bad, tmp_path: Path) -> None:
    assert "--resume takes no other option" in bad("--resume", tmp_path)


def test_output_folder_that_cannot_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    bad = Bad(tmp_path / "file" / "out", capsys, monkeypatch)
    assert "check --out" in bad()
    assert (tmp_path / "file").read_text(encoding="utf-8") == ""


def test_other_commands_refuse_in_one_line_too(bad: Bad, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("", encoding="utf-8")
    assert "result.json: no such file" in bad("report", tmp_path, entry=cli.main)
    assert "no such device file" in bad("device", "check", "absent", entry=cli.main)
    assert "no such model" in bad("cost", "--model", "absent", entry=cli.main)
    assert "not empty" in bad("data", "synthesize", tmp_path / "full", entry=cli.main)
    assert "not empty" in bad("base", "build", tmp_path / "full", entry=cli.main)
    assert "1 to" in bad("data", "synthesize", tmp_path / "new", "--cases", "0", entry=cli.main)
    assert "out of range" in bad("base", "build", tmp_path / "new", "--steps", "0", entry=cli.main)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("--num_clients", "--num-clients"),
        ("--num_clients=4", "--num-clients=4"),
        ("--num-clients", "--num-clients"),
        ("--model=my_model", "--model=my_model"),
        ("my_model", "my_model"),
        ("num_clients=4", "num_clients=4"),
        ("--set=batch_size=3", "--set=batch_size=3"),
        ("-x_y", "-x_y"),
    ],
)
def test_underscores_are_dashes_in_names_alone(given: str, read: str) -> None:
    assert cli._dashed([given]) == [read]


@pytest.mark.parametrize("spelling", ["--num-clients", "--num_clients"])
def test_both_spellings_reach_the_configuration(bad: Bad, spelling: str) -> None:
    assert "num_clients" in bad(spelling, "0")


ENTRY = "from fllm.cli import run_main; run_main()"


@pytest.mark.parametrize("arguments", [["--num-clients", "0"], ["--model", "absent"]], ids=" ".join)
def test_real_process_refuses_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    """In a process of its own nothing catches what other libraries write to stderr when they are imported.

    The first is refused before they are, the second after all of them.
    """
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, *SETTINGS, "--out", "out", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_help_tells_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fllm-run", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        cli.run_main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--device-model", "--num-clients", "--data-dir", "--task", "--data-file", "--text-column", "--label-column",
        "--client-column", "--partition", "--model", "--fields", "--set", "--resume", "--out", "--workers",
        "--min-clients", "--client-timeout", "--from-round",
    ):  # fmt: skip
        assert option in text
    assert [text.index(f"─ {group} ─") for group in ("Run", "Model and device", "Data", "Federation")] == sorted(
        text.index(f"─ {group} ─") for group in ("Run", "Model and device", "Data", "Federation")
    )


def test_shipped_model_is_untouched() -> None:
    """The broken copies of these tests were copies."""
    assert (SHIPPED / "model.safetensors").is_file()


def test_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_space(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fllm.data.write_cohort", lambda *_, **__: no_space())
    monkeypatch.setattr(sys, "argv", ["fllm", "data", "synthesize", "anywhere"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, capsys.readouterr().err) == (1, "error: no space left on the disk; free some and resume\n")


# Our own mistakes: their place is shown, and what they say is not, as it could quote a note.


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"cannot read {CANARY}"), KeyError(CANARY), RuntimeError(f"{CANARY}\n{CANARY}"), OSError(CANARY),
        UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY), TypeError(CANARY),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_unexpected_error_says_where_and_not_what(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fllm.runs.prepare", raising(error))
    monkeypatch.setattr(sys, "argv", ["fllm-run", *SETTINGS, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.run_main()
    stdout, stderr = capsys.readouterr()
    assert stop.value.code == 1
    assert CANARY not in stdout + stderr
    assert f"internal error: {type(error).__name__}" in stderr
    assert "runs.py" in stderr and "test_cli.py" in stderr
    assert not (tmp_path / "out").exists()
