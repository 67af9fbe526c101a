"""What a run learns from and is tested on: a corpus, its split, and the clients that hold it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from device_models import InputError
from fllm.config import RunConfig
from fllm.data import load_cohort, load_synthetic
from fllm.data.corpora import TableColumns, read_table
from fllm.data.corpus import Corpus
from fllm.data.partition import Client, PartitionRule, partition
from fllm.data.passages import read_texts
from fllm.data.prompts import Cues, diagnosis_corpus
from fllm.data.splits import Split, SplitRule, split_examples

if TYPE_CHECKING:
    from fllm.data import Cohort


@dataclass(frozen=True)
class Cases:
    """A corpus, cut into training, validation and test examples, and dealt to clients."""

    corpus: Corpus = field(repr=False)
    split: Split = field(repr=False)
    dealing: PartitionRule
    clients: list[Client] = field(repr=False)


def load_cases(config: RunConfig) -> Cases:
    """Read or make up the corpus, hold out the test examples, and deal the others to the clients.

    Raises:
        InputError: If the data are bad, or cannot be cut as asked.
    """
    corpus = read_corpus(config)
    rule = SplitRule(
        config.split, test_fraction=config.test_fraction, validation_fraction=config.validation_fraction,
        folds=config.num_folds, fold=config.fold,
    )  # fmt: skip
    split = split_examples(corpus, rule, seed=config.seed)
    if config.calibration == "temperature" and not split.validation:
        remedy = f"have {config.split_column} name some, or choose another split"
        raise InputError("a temperature is fitted on validation cases, and there are none", where="calibration",
                         remedy=remedy)  # fmt: skip
    dealing = PartitionRule(config.partition, alpha=config.dirichlet_alpha)
    clients = partition(split, dealing, num_clients=config.num_clients, seed=config.seed)
    return Cases(corpus, split, dealing, clients)


def read_corpus(config: RunConfig) -> Corpus:
    """Read what the task reads; raises InputError."""
    if config.task == "csv":
        return read_table(Path(_single(config.data_files)), _columns(config))
    if config.task == "text":
        return read_texts([Path(name) for name in config.data_files])
    return diagnosis_corpus(_cohort(config), config.fields, Cues(**config.cues.model_dump()))


def _single(files: tuple[str, ...]) -> str:
    if len(files) != 1:
        raise InputError("one table at a time", where="data_files", expected="one file", received=len(files))
    return files[0]


def _columns(config: RunConfig) -> TableColumns:
    return TableColumns(
        text=config.text_column, label=config.label_column, client=config.client_column, part=config.split_column
    )


def _cohort(config: RunConfig) -> Cohort:
    if config.data_dir is not None:
        return load_cohort(config.data_dir)
    hospitals = config.num_hospitals or config.num_clients
    if hospitals > config.num_cases:
        raise InputError(
            "more hospitals than cases", where="num_clients", expected=f"at most {config.num_cases}", received=hospitals
        )
    return load_synthetic(
        config.num_cases, n_hospitals=hospitals, seed=config.seed, label_concentration=config.label_concentration
    )
