"""The configuration: defaults, strict keys and types, settings from the command line, YAML files."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from device_models import InputError
from fllm.config import SECTIONS, RunConfig, load_config, parse_setting, validate_config
from fllm.data.prompts import Cues
from fllm.sections import CueSettings
from tests.fllm.small import OUTCOME_NAMES

RUN_FILES = sorted((Path(__file__).parents[2] / "configs" / "runs").glob("*.yaml"))


def refused(tree: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        validate_config(tree, "here")
    message = str(error.value)
    assert message.startswith("here: ")
    assert "\n" not in message
    return message


def test_defaults_are_valid_and_frozen() -> None:
    config = load_config()
    assert config == RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"device": {"readout.bits": 6, "retention.tau": "1 ms"}, "fields": ["labs"], "token_period": "auto"},
        {"lora": {"r": 2, "alpha": 4}, "num_hospitals": 7, "model": "m", "data_dir": "d"},
    ],
    ids=["defaults", "device", "nested"],
)
def test_dump_and_validate_is_a_round_trip(settings: dict[str, Any]) -> None:
    config = validate_config(settings, "here")
    assert validate_config(config.model_dump(mode="json"), "there") == config


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"num_client": 4}, "num_clients"),
        ({"lora": {"scaling": 4}}, "known: alpha, dropout, freeze_a, r, rslora, targets, train_scalers"),
        ({"lora": {"alpa": 4.0}}, "did you mean alpha"),
        ({"cues": {"masc": "keep"}}, "did you mean mask"),
        ({"text_colum": "text"}, "did you mean text_column"),
    ],
)
def test_unknown_key_names_the_nearest(tree: dict[str, Any], named: str) -> None:
    message = refused(tree)
    assert "unknown key" in message
    assert named in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_clients", True),
        ("num_clients", "3"),
        ("num_clients", 3.0),
        ("num_clients", 0),
        ("num_rounds", -1),
        ("batch_size", None),
        ("seed", -1),
        ("threads", 0),
        ("num_cases", 39),
        ("max_tokens", 15),
        ("test_fraction", 0.0),
        ("test_fraction", 1.0),
        ("test_fraction", "0.25"),
        ("learning_rate", 0.0),
        ("learning_rate", True),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("note_loss", -0.1),
        ("label_concentration", True),
        ("label_concentration", 0.0),
        ("model", 3),
        ("adaptation", "twostep"),
        ("adaptation", None),
        ("device", None),
        ("device", "readout.bits"),
        ("fields", "history"),
        ("lora", 8),
        ("strategy", "fedadam"),
        ("optimiser", "adam"),
        ("training_chips", "mine"),
        ("token_period", 10),
        ("task", "diagnose"),
        ("data_files", "notes.csv"),
        ("client_column", 1),
        ("cues", "keep"),
        ("split", "random"),
        ("validation_fraction", -0.1),
        ("validation_fraction", 1.0),
        ("num_folds", 1),
        ("fold", -1),
        ("field_tokens", ["labs"]),
        ("partition", "hospitals"),
        ("dirichlet_alpha", 0.0),
        ("dirichlet_alpha", float("inf")),
        ("lora_baselines", "local"),
        ("centralised_steps", 0),
        ("calibration", "platt"),
        ("calibration", None),
        ("generation", 1),
        ("generation", "yes"),
    ],
)
def test_wrong_type_or_range_names_key_and_value(key: str, value: object) -> None:
    message = refused({key: value})
    assert message.startswith(f"here: {key}: ")
    assert repr(value) in message


@pytest.mark.parametrize(("key", "value"), [("r", 0), ("r", True), ("alpha", 0.0), ("alpha", "16"), ("dropout", 1.0)])
def test_wrong_lora_setting_names_its_path(key: str, value: object) -> None:
    assert refused({"lora": {key: value}}).startswith(f"here: lora.{key}: ")


@pytest.mark.parametrize(
    ("key", "value"), [("mask", "none"), ("studies", "names"), ("mentions", True), ("panel", "long")]
)
def test_unknown_position_of_a_switch_lists_the_known(key: str, value: object) -> None:
    message = refused({"cues": {key: value}})
    assert message.startswith(f"here: cues.{key}: ")
    assert get_args(CueSettings.model_fields[key].annotation)[0] in message


def test_wrong_values_inside_collections_name_their_place() -> None:
    assert refused({"lora_baselines": ["pooled"]}).startswith("here: lora_baselines.0: ")
    assert refused({"data_files": [3]}).startswith("here: data_files.0: ")
    assert refused({"field_tokens": {"labs": 0}}).startswith("here: field_tokens.labs: ")


def test_switches_are_those_of_the_notes() -> None:
    """The configuration lists them again, strictly; it must not drift from what writes the notes."""
    assert CueSettings().model_dump() == asdict(Cues())
    positions = {name: get_args(field.annotation) for name, field in CueSettings.model_fields.items()}
    for name, allowed in positions.items():
        for position in allowed:
            assert getattr(Cues(**{name: position}), name) == position


TABLE: dict[str, Any] = {"task": "csv", "data_files": ["notes.csv"]}
TEXT: dict[str, Any] = {"task": "text", "data_files": ["notes.txt"]}


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"data_files": ["notes.csv"]}, "data_dir"),
        ({"task": "csv"}, "data_files"),
        ({"task": "text"}, "data_files"),
        (TABLE | {"data_dir": "cohort"}, "no data_dir"),
        (TEXT | {"data_dir": "cohort"}, "no data_dir"),
        (TABLE | {"split": "lacdm"}, "task: diagnosis"),
        (TABLE | {"partition": "age"}, "task: diagnosis"),
        (TEXT | {"split": "lacdm"}, "task: diagnosis"),
        (TEXT | {"generation": True}, "another task"),
        (TEXT | {"calibration": "content_free"}, "another task"),
        (TEXT | {"calibration": "temperature", "validation_fraction": 0.1}, "another task"),
        (TABLE | {"split": "column"}, "split_column"),
        ({"calibration": "temperature"}, "validation_fraction"),
        ({"calibration": "temperature", "split": "kfold"}, "validation_fraction"),
        ({"strategy": {"kind": "fedavg", "server_learning_rate": 0.1}}, "belongs to fedavgm, fedadam, fedyogi"),
        ({"strategy": {"proximal_mu": 0.1}}, "has no effect with fedavg"),
        ({"strategy": {"kind": "krum", "factors": "svd"}, "num_clients": 9}, "belongs to fedavg, fedprox"),
        ({"strategy": {"factors": "svd"}, "lora": {"freeze_a": True}}, "take one"),
        ({"strategy": {"kind": "krum", "keep": 3}}, "belongs to multikrum"),
        ({"strategy": {"kind": "trimmed_mean"}}, "would cut off none"),
        ({"strategy": {"kind": "krum"}}, "n >= 2 f + 3"),
        ({"strategy": {"kind": "multikrum", "keep": 5}, "num_clients": 5}, "the 4 clients that are not malicious"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line_with_the_remedy(tree: dict[str, Any], named: str) -> None:
    assert named in refused(tree)


@pytest.mark.parametrize(
    "tree",
    [
        TABLE | {"split": "column", "split_column": "part", "calibration": "temperature"},
        TABLE | {"generation": True, "calibration": "content_free", "partition": "dirichlet"},
        TEXT | {"split": "kfold", "partition": "iid"},
        {"split": "lacdm", "calibration": "temperature"},
        {"strategy": {"kind": "fedadam", "server_learning_rate": 0.01, "tau": 1e-4}, "optimiser": "sgd"},
        {"strategy": {"kind": "multikrum", "malicious": 2, "keep": 5}, "num_clients": 7},
        {"calibration": "temperature", "validation_fraction": 0.1},
        {"split": "kfold", "calibration": "temperature", "validation_fraction": 0.1, "partition": "age"},
    ],
)
def test_settings_that_go_together(tree: dict[str, Any]) -> None:
    config = validate_config(tree, "here")
    assert validate_config(config.model_dump(mode="json"), "there") == config


def test_text_files_are_split_by_their_names_without_a_column() -> None:
    assert validate_config(TEXT | {"split": "column"}, "here").split == "column"


@pytest.mark.parametrize("period", ["10 V", "0 us", "10", "-1 us", "", "fast", "1e999 s"])
def test_bad_token_period(period: str) -> None:
    assert refused({"token_period": period}).startswith("here: token_period: expected")


@pytest.mark.parametrize("period", ["10 us", "1e-5 s", "0.01 ms", "auto"])
def test_good_token_period(period: str) -> None:
    assert validate_config({"token_period": period}, "here").token_period == period


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (["history", "icd"], "'icd' leaks the answer"),
        (["discharge_diagnosis"], "leaks the answer"),
        (["histori"], "did you mean history"),
        ([], "no fields"),
        (["labs", "labs"], "stands twice"),
    ],
)
def test_unknown_or_forbidden_fields(fields: list[str], what: str) -> None:
    assert what in refused({"fields": fields})


@pytest.mark.parametrize("name", [*OUTCOME_NAMES, "pathology_ids.json", "ICD_Diagnosis", "Discharge_Diagnosis"])
def test_no_outcome_can_be_a_field(name: str) -> None:
    assert f"'{name}' leaks the answer" in refused({"fields": ["labs", name]})


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("lora.r=4", ("lora.r", 4)),
        (" seed = 3", ("seed", 3)),
        ("learning_rate=1e-4", ("learning_rate", 1e-4)),
        ("device.retention.tau=1 ms", ("device.retention.tau", "1 ms")),
        ("fields=[labs, imaging]", ("fields", ["labs", "imaging"])),
        ("model=", ("model", None)),
        ("data_dir=a=b", ("data_dir", "a=b")),
    ],
)
def test_setting_is_key_and_yaml_value(text: str, parsed: tuple[str, object]) -> None:
    assert parse_setting(text) == parsed


@pytest.mark.parametrize("text", ["seed", "=3", "seed=[", "lora={r: 1, r: 2}"])
def test_setting_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        parse_setting(text)


def test_settings_override_the_file_and_reach_into_the_device(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 5\nnum_clients: 2\ndevice: {readout.bits: 4}\nlora: {r: 2}\n", encoding="utf-8")
    config = load_config(file, {"seed": 6, "device.retention.tau": "1 ms", "device.readout.bits": 6, "lora.alpha": 2.0})
    assert (config.seed, config.num_clients, config.lora.r, config.lora.alpha) == (6, 2, 2, 2.0)
    assert config.device == {"readout.bits": 6, "retention.tau": "1 ms"}


@pytest.mark.parametrize(
    ("content", "key"),
    [("device:\n", "device.readout.bits"), ("device: 3\n", "device.readout.bits"), ("lora: 3\n", "lora.r")],
)
def test_setting_below_something_that_is_no_section(tmp_path: Path, content: str, key: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"{re.escape(key)}: not a section"):
        load_config(file, {key: 4})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("seed: 1\nseed: 2\n", "stands twice"),
        ("lora:\n  r: 1\n  r: 2\n", "stands twice"),
        ("- seed\n", "not a run file"),
        ("", "not a run file"),
        ("seed: [\n", "not valid YAML"),
        ("num_clients: no\n", "num_clients"),
        ("1: 2\n", "strings"),
    ],
)
def test_bad_run_file_is_named(tmp_path: Path, content: str, what: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=what) as error:
        load_config(file)
    assert str(error.value).startswith(str(file))


def test_absent_run_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.skipif(not RUN_FILES, reason="no run files in this tree")
@pytest.mark.parametrize("file", RUN_FILES, ids=lambda path: path.stem)
def test_shipped_run_file_loads(file: Path) -> None:
    load_config(file)


@pytest.mark.skipif(not RUN_FILES, reason="no run files in this tree")
def test_default_run_file_is_complete_and_says_the_defaults() -> None:
    from device_models.strict_yaml import read_yaml

    file = next((path for path in RUN_FILES if path.stem == "default"), None)
    if file is None:
        pytest.skip("no default.yaml")
    assert load_config(file) == RunConfig()
    tree = read_yaml(file)
    assert set(tree) == set(RunConfig.model_fields)
    for section, settings in SECTIONS.items():
        assert set(tree[section]) == set(settings.model_fields)
