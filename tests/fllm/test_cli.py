"""Bad input on the command line: one line on stderr, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from device_models.loading import preset_folder
from device_models.strict_yaml import read_yaml
from fllm import cli
from tests.fllm.small import CANARY, SHIPPED, TINY, cohort_with_canary, copied, edit_json

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
        (["--resume", "absent"], "--resume"),
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
    return "pathology_ids.json: unknown diagnosis a key that is no name"


def broken_labels(data: Path) -> str:
    (data / "pathology_ids.json").write_text(f'{{"{CANARY}', encoding="utf-8")
    return "pathology_ids.json"


def no_labels(data: Path) -> str:
    (data / "pathology_ids.json").unlink()
    return "pathology_ids.json: file missing"


@pytest.mark.parametrize(
    "breakage",
    [
        without_file, empty_csv, header_alone, without_header, open_quote, one_field_more, text_for_an_id,
        other_encoding, unknown_diagnosis, text_for_a_diagnosis, broken_labels, no_labels,
    ],
)  # fmt: skip
def test_bad_data_is_named_without_its_text(bad: Bad, data: Path, breakage: Callable[[Path], str]) -> None:
    expected = breakage(data)
    assert expected in bad("--data-dir", data)


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num-clients", "0"],
        ["--model", "absent"],
        ["--device-model", "absent.yaml"],
    ],
    ids=" ".join,
)
def test_real_process_refuses_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    """In a process of its own nothing catches what other libraries write to stderr when they are imported."""
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
    for option in ("--device-model", "--num-clients", "--data-dir", "--model", "--set", "--resume", "--out"):
        assert option in text


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
