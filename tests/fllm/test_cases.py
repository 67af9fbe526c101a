"""What each task reads, and that the settings of a run reach its split, its clients and the facts of its data."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.optimize import linprog

from device_models import InputError
from fllm.cases import Cases, load_cases, read_corpus
from fllm.config import RunConfig
from fllm.data import FIELDS, Corpus, Task, diagnosis_corpus, load_cohort, load_synthetic, write_cohort
from fllm.data.prompts import Cues
from fllm.prompting import Encoded
from fllm.record import data_facts
from tests.fllm.small import CANARY, CLASSES, TINY, as_if_real, file_of_text, table_of_texts

SYNTHETIC: dict[str, Any] = {"num_cases": 60, "num_clients": 3}


def facts_of(config: RunConfig) -> dict[str, Any]:
    return data_facts(config, load_cases(config), Encoded({}, {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "data", 60, n_hospitals=3, seed=4)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table_of_texts(tmp_path_factory.mktemp("table") / "weather.csv")


def of_table(table: Path, **settings: Any) -> RunConfig:
    return RunConfig(task="csv", data_files=(str(table),), num_clients=3, **settings)


# The default: a synthetic cohort.


def test_default_is_the_synthetic_cohort_of_the_seed() -> None:
    config = RunConfig(**SYNTHETIC, seed=5)
    cohort = load_synthetic(60, n_hospitals=3, seed=5, label_concentration=config.label_concentration)
    assert read_corpus(config) == diagnosis_corpus(cohort, config.fields, Cues())
    assert read_corpus(config).synthetic


@pytest.mark.parametrize(
    "other", [{"num_cases": 61}, {"num_clients": 4}, {"num_hospitals": 5}, {"label_concentration": 0.2}, {"seed": 1}]
)
def test_each_setting_of_the_synthetic_cohort_matters(other: dict[str, Any]) -> None:
    usual, changed = (read_corpus(RunConfig(**SYNTHETIC | settings)) for settings in ({}, other))
    assert changed.sha256 != usual.sha256
    assert (len(changed.examples), len(changed.groups)) == (
        other.get("num_cases", 60), other.get("num_hospitals", other.get("num_clients", 3)),
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{"num_clients": 61}, {"num_hospitals": 61}])
def test_more_hospitals_than_cases_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="more hospitals than cases") as error:
        read_corpus(RunConfig(**SYNTHETIC | settings))
    assert "at most 60" in str(error.value)


# A folder of clinical cases.


def test_folder_is_read_with_the_fields_and_cues_of_the_run(folder: Path) -> None:
    cues = {"mask": "keep", "studies": "exam_name", "panel": "full", "mentions": "neutral"}
    config = RunConfig(data_dir=str(folder), fields=("imaging", "history"), cues=cues)
    found = read_corpus(config)
    assert found == diagnosis_corpus(load_cohort(folder), ("imaging", "history"), Cues(**cues))
    usual = read_corpus(RunConfig(data_dir=str(folder)))
    assert [e.key for e in found.examples] == [e.key for e in usual.examples]
    assert found.examples[0].sections != usual.examples[0].sections


@pytest.mark.parametrize("key", ["mask", "studies", "mentions", "panel"])
def test_every_switch_against_cues_changes_some_note(folder: Path, key: str) -> None:
    """A switch that the configuration lost on its way would be reported, and do nothing."""
    other = {"mask": "keep", "studies": "hidden", "mentions": "neutral", "panel": "full"}[key]
    usual, changed = (
        read_corpus(RunConfig(data_dir=str(folder), fields=FIELDS, cues=cues)) for cues in ({}, {key: other})
    )
    assert usual.examples != changed.examples
    assert facts_of(RunConfig(data_dir=str(folder), cues={key: other}))["cues"][key] == other


# Tables and texts.


def test_table_is_read_by_its_columns(table: Path) -> None:
    found = read_corpus(of_table(table, client_column="station", split_column="part"))
    assert found.task == Task("classification", CLASSES, "label:")
    assert found.groups == ("station 0", "station 1", "station 2")
    assert len(found.examples) == 60
    assert {example.part for example in found.examples} == {"train", "validation", "test"}
    assert all(CANARY in text for example in found.examples for _, text in example.sections)
    assert not found.synthetic
    bare = read_corpus(of_table(table))
    assert {(example.group, example.part) for example in bare.examples} == {(None, None)}


def test_other_columns_of_a_table_can_be_text_and_class(table: Path) -> None:
    found = read_corpus(of_table(table, text_column="text, part", label_column="station"))
    assert found.task.classes == ("station 0", "station 1", "station 2")
    assert [name for name, _ in found.examples[0].sections] == ["text", "part"]


def test_class_of_a_table_cannot_be_its_text(table: Path) -> None:
    with pytest.raises(InputError, match="the model must not see"):
        read_corpus(of_table(table, text_column="text,label"))


def test_split_column_decides_the_split(table: Path) -> None:
    facts = facts_of(of_table(table, split="column", split_column="part"))
    assert (facts["num_train"], facts["num_validation"], facts["num_test"]) == (36, 12, 12)
    assert facts["split"]["name"] == "column"


def test_temperature_needs_validation_cases_that_only_the_data_can_name(tmp_path: Path) -> None:
    file = table_of_texts(tmp_path / "weather.csv")
    settings = {"split": "column", "split_column": "part", "calibration": "temperature"}
    assert len(load_cases(of_table(file, **settings)).split.validation) == 12
    file.write_text(file.read_text(encoding="utf-8").replace(",validation\n", ",train\n"), encoding="utf-8")
    with pytest.raises(InputError, match="validation"):
        load_cases(of_table(file, **settings))


@pytest.mark.parametrize("number", [2, 3])
def test_tables_come_one_at_a_time(table: Path, number: int) -> None:
    config = RunConfig(task="csv", data_files=(str(table),) * number)
    with pytest.raises(InputError, match="one table at a time") as error:
        read_corpus(config)
    assert str(error.value).startswith("data_files: ")


def test_gzipped_json_lines_are_a_table_too(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl.gz"
    lines = "".join(f'{{"text": "word {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(8))
    file.write_bytes(gzip.compress(lines.encode()))
    assert read_corpus(of_table(file)).task.classes == ("a", "b")


def test_texts_are_passages_and_their_files_are_groups(tmp_path: Path) -> None:
    files = [file_of_text(tmp_path / f"{name}.txt", 4, word=name) for name in ("north", "south")]
    found = read_corpus(RunConfig(task="text", data_files=tuple(map(str, files))))
    assert found.task == Task("language")
    assert found.groups == ("north", "south")
    assert len(found.examples) == 8
    assert {example.label for example in found.examples} == {None}
    for example in found.examples:
        assert example.group is not None and example.group in example.sections[0][1]


def test_text_files_called_train_and_test_can_be_the_split(tmp_path: Path) -> None:
    """No column names the parts of texts: the names of their files do."""
    files = [file_of_text(tmp_path / f"{name}.txt", size) for name, size in (("train", 5), ("test", 3))]
    facts = facts_of(RunConfig(task="text", data_files=tuple(map(str, files)), split="column", num_clients=2))
    assert (facts["num_train"], facts["num_validation"], facts["num_test"]) == (5, 0, 3)


# From the configuration to the facts.


def test_holdout_takes_its_fractions_and_seed_from_the_configuration() -> None:
    facts = facts_of(RunConfig(**SYNTHETIC, test_fraction=0.4, validation_fraction=0.2, seed=3))
    assert (facts["num_train"], facts["num_validation"], facts["num_test"]) == pytest.approx((24, 12, 24), abs=3)
    own = {key: facts["split"][key] for key in ("name", "test_fraction", "validation_fraction", "seed")}
    assert own == {"name": "holdout", "test_fraction": 0.4, "validation_fraction": 0.2, "seed": 3}


def test_folds_of_a_run_partition_the_cases() -> None:
    tested: list[int] = []
    for fold in range(3):
        config = RunConfig(**SYNTHETIC, split="kfold", num_folds=3, fold=fold)
        cases = load_cases(config)
        facts = data_facts(config, cases, Encoded({}, {}))["split"]
        assert [facts[key] for key in ("name", "folds", "fold")] == ["kfold", 3, fold]
        tested += [example.key for example in cases.split.test]
    assert sorted(tested) == sorted(example.key for example in read_corpus(config).examples)


def test_fold_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="fold out of range"):
        load_cases(RunConfig(**SYNTHETIC, split="kfold", num_folds=3, fold=3))


def test_published_split_is_the_same_for_all_seeds(folder: Path, tmp_path: Path) -> None:
    data = str(write_cohort(tmp_path / "data", 200, n_hospitals=3, seed=0))
    first, second = (load_cases(RunConfig(data_dir=data, split="lacdm", seed=seed)) for seed in (0, 7))
    assert first.split == second.split
    assert first.split.facts["name"] == "lacdm"
    assert (len(first.split.train), len(first.split.validation), len(first.split.test)) == (160, 20, 20)
    with pytest.raises(InputError, match="too few cases for the published split"):
        load_cases(RunConfig(data_dir=str(folder), split="lacdm"))


def test_clinical_cases_name_no_part_of_the_data() -> None:
    with pytest.raises(InputError, match="60 examples belong to no set"):
        load_cases(RunConfig(**SYNTHETIC, split="column", split_column="part"))


SITES = ["site 1", "site 2", "site 3"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"partition": "hospital"}, lambda names: names == sorted(names) != SITES),
        ({"partition": "iid"}, lambda names: names == SITES),
        ({"partition": "dirichlet", "dirichlet_alpha": 0.3}, lambda names: names == SITES),
        ({"partition": "age"}, lambda names: any(name[0].isdigit() for name in names)),
    ],
)
def test_partition_and_its_alpha_reach_the_facts(settings: dict[str, Any], named: Callable[[list[str]], bool]) -> None:
    facts = facts_of(RunConfig(**SYNTHETIC, **settings))
    assert facts["partition"]["name"] == settings["partition"]
    assert facts["partition"]["alpha"] == settings.get("dirichlet_alpha")
    assert len(facts["clients"]) == 3
    assert sum(client["num_train"] for client in facts["clients"]) == facts["num_train"]
    assert sum(client["num_test"] for client in facts["clients"]) == facts["num_test"]
    names = [client["name"] for client in facts["clients"]]
    assert len(set(names)) == 3
    assert named(names), names


def test_skew_follows_alpha() -> None:
    mixes = [
        facts_of(RunConfig(num_cases=200, num_clients=4, partition="dirichlet", dirichlet_alpha=alpha))["partition"]
        for alpha in (0.1, 100.0)
    ]
    assert mixes[0]["js_divergence"] > 5 * mixes[1]["js_divergence"]


def test_clients_hold_all_training_and_test_cases_once() -> None:
    cases = load_cases(RunConfig(**SYNTHETIC, validation_fraction=0.1))
    for part, own in ((cases.split.train, "train"), (cases.split.test, "test")):
        held = [example.key for client in cases.clients for example in getattr(client, own)]
        assert sorted(held) == [example.key for example in part]
    assert cases.split.validation


def test_facts_describe_the_fields_of_clinical_cases_alone(folder: Path, table: Path) -> None:
    clinical, other = facts_of(RunConfig(**SYNTHETIC, fields=("labs",))), facts_of(of_table(table))
    assert (clinical["fields"], clinical["smallest_cell"]) == (["labs"], None)
    assert (other["fields"], other["smallest_cell"], "cues" in other) == ([], 5, False)
    assert facts_of(RunConfig(data_dir=str(folder)))["smallest_cell"] is None  # fabricated, and read from a folder


def test_real_numbers_of_admissions_hide_small_counts(tmp_path: Path) -> None:
    folder = as_if_real(write_cohort(tmp_path / "data", 60, n_hospitals=3, seed=0))
    facts = facts_of(RunConfig(data_dir=str(folder), num_clients=3))
    assert (facts["synthetic"], facts["smallest_cell"]) == (False, 5)
    assert any(count is None for client in facts["clients"] for count in client["test_label_counts"].values())
    assert any("no patient identifiers" in warning for warning in facts["warnings"])


def largest_possible(facts: dict[str, Any], wanted: Callable[[str, int, int], bool]) -> float:
    """Return the largest sum that some counts can have, as far as all published numbers together tell.

    Args:
        facts: What a result says of its data.
        wanted: Tells which counts are summed, by part, client and class.
    """
    classes, clients = list(facts["label_counts"]), facts["clients"]
    cells = [(part, client, label) for part in ("train", "test") for client in range(len(clients))
             for label in range(len(classes))]  # fmt: skip
    cells += [("validation", -1, label) for label in range(len(classes))]
    rows, sums = [], []

    def told(value: int | None, chosen: Callable[[str, int, int], bool]) -> None:
        if value is not None:
            rows.append([float(chosen(*cell)) for cell in cells])
            sums.append(value)

    told(facts["num_train"], lambda part, *_: part == "train")
    told(facts["num_test"], lambda part, *_: part == "test")
    told(facts["num_validation"], lambda part, *_: part == "validation")
    for label, name in enumerate(classes):
        told(facts["label_counts"][name], lambda *cell, label=label: cell[2] == label)
        told(facts["test_label_counts"][name], lambda *cell, label=label: (cell[0], cell[2]) == ("test", label))
    for at, client in enumerate(clients):
        for part, number, counts in (("train", "num_train", "label_counts"), ("test", "num_test", "test_label_counts")):
            told(client[number], lambda *cell, part=part, at=at: cell[:2] == (part, at))
            for label, name in enumerate(classes):
                own = (part, at, label)
                told(client[counts][name], lambda *cell, own=own: cell == own)
    found = linprog([-float(wanted(*cell)) for cell in cells], A_eq=rows, b_eq=sums, bounds=(0, None))
    assert found.status == 0
    return -float(found.fun)


@pytest.mark.parametrize("partition", ["hospital", "age", "iid"])
@pytest.mark.parametrize(("seed", "validation_fraction"), [(0, 0.0), (0, 0.1), (1, 0.0), (2, 0.1)])
def test_small_counts_cannot_be_computed_from_all_tables_together(
    tmp_path: Path, partition: str, seed: int, validation_fraction: float
) -> None:
    """Each table hides its own; a reader has all of them, and their sums."""
    folder = as_if_real(write_cohort(tmp_path / "data", 120, n_hospitals=3, seed=seed))
    config = RunConfig(
        data_dir=str(folder), num_clients=3, partition=partition, seed=seed, validation_fraction=validation_fraction
    )  # fmt: skip
    cases, facts = load_cases(config), facts_of(config)
    held = {("train", at): client.train for at, client in enumerate(cases.clients)}
    held |= {("test", at): client.test for at, client in enumerate(cases.clients)}
    held["validation", -1] = cases.split.validation
    cells = {(*place, label): count for place, own in held.items()
             for label, count in Counter(example.label for example in own).items()}  # fmt: skip
    sums: Counter[tuple[tuple[int, ...], tuple[str | int, ...]]] = Counter()
    for cell, count in cells.items():
        for kept in ((0, 1, 2), (0, 1), (0, 2)):  # a class of a client, a client, a class of all clients
            sums[(kept, tuple(cell[at] for at in kept))] += count
    small = [key for key, count in sums.items() if 0 < count < 5]
    assert small
    for kept, own in small:
        most = largest_possible(facts, lambda *cell, kept=kept, own=own: tuple(cell[at] for at in kept) == own)
        assert most >= 5, (kept, own)


def test_nothing_shows_text_or_identifiers(table: Path) -> None:
    config = of_table(table)
    cases = load_cases(config)
    for shown in (repr(cases), repr(cases.split), repr(cases.clients), repr(cases.corpus)):
        assert CANARY not in shown
        assert "Report" not in shown
    synthetic = load_cases(RunConfig(**TINY))
    shown = repr(synthetic) + repr(synthetic.clients) + repr(synthetic.corpus.examples)
    assert not any(str(example.key) in shown for example in synthetic.corpus.examples)


def test_types_of_what_is_loaded() -> None:
    cases = load_cases(RunConfig(**SYNTHETIC))
    assert isinstance(cases, Cases)
    assert isinstance(cases.corpus, Corpus)
    assert cases.dealing.name == "hospital"
