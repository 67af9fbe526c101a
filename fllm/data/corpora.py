"""Any labelled table as texts with classes, or as texts for language modelling."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from device_models.errors import InputError
from fllm.data.corpus import Corpus, Example, Task
from fllm.data.table_files import Table, read_columns

CUE = "label:"
"""What stands between a text and the name of its class."""

MOST_CLASSES, LONGEST_CLASS = 100, 80
"""More classes, or longer names [characters], are taken for a wrong column."""

FEW = 10
"""A class with fewer texts is named as small: one text changes its recall by a tenth or more."""

_PARTS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table hold what.

    Attributes:
        text: The text; several, parted by commas, become parts of the text that carry their names.
        label: The class.
        client: Hospital or other owner of each text, or None.
        part: Whether a text is for ``train``, ``validation`` or ``test``, or None.
    """

    text: str = "text"
    label: str = "label"
    client: str | None = None
    part: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns one by one."""
        return tuple(name.strip() for name in self.text.split(","))


def read_table(path: Path, columns: TableColumns | None = None, *, language: bool = False) -> Corpus:
    """Read a CSV, TSV or JSONL file, plain or gzipped, as one text per row.

    Rows without text are left out and counted in a warning. A text without a class, client or part is an error.

    Args:
        path: The file.
        columns: What its columns hold; by default ``text`` and ``label``.
        language: Whether the texts are for language modelling; no label is read then.

    Raises:
        InputError: If the file is malformed, a column is missing, or its values cannot be what it is said to hold.
    """
    columns = columns or TableColumns()
    table = read_columns(path, _wanted(columns, language))
    sections = _sections(table, columns, language)
    kept = [row for row, parts in enumerate(sections) if parts]
    if not kept:
        raise InputError("no row has any text", where=table.name, remedy="is this the text column?")
    labels = None if language else _filled(table, columns.label, kept)
    groups = _filled(table, columns.client, kept) if columns.client else None
    parts = _parts(table, columns.part, kept) if columns.part else None
    task, index = _task(table, labels) if labels else (Task("language"), {})
    if groups:
        _check_spread(table, groups, "client")
    examples = tuple(
        Example(
            table.numbers[row], sections[row], index[labels[place]] if labels else None,
            group=groups[place] if groups else None, part=parts[place] if parts else None,
        )
        for place, row in enumerate(kept)
    )  # fmt: skip
    warnings = (*_dropped(len(sections) - len(kept)), *_small(examples, task), *repeats(examples))
    return Corpus(task, examples, synthetic=False, sha256=table.sha256, source=path.name, warnings=warnings)


def _wanted(columns: TableColumns, language: bool) -> list[str]:
    texts = columns.texts
    if not all(texts) or len(set(texts)) < len(texts):
        raise InputError(
            "text columns", expected="one name, or different names parted by commas", received=columns.text
        )
    roles = {"label": None if language else columns.label, "client": columns.client, "part": columns.part}
    for role, name in roles.items():
        if name is not None and not name.strip():
            raise InputError(f"{role} column", expected="the name of a column", received=name)
    if not language and columns.label in texts:
        raise InputError(f"text column {columns.label!r} is the label, which the model must not see")
    return list(dict.fromkeys([*texts, *(name for name in roles.values() if name)]))


def _sections(table: Table, columns: TableColumns, language: bool) -> list[tuple[tuple[str, str], ...]]:
    """Return name and text of each part of each row that has any."""
    names = columns.texts if len(columns.texts) > 1 else ("" if language else "text",)
    rows = []
    for cells in zip(*(table.columns[column] for column in columns.texts), strict=True):
        texts = (cell.replace("\r\n", "\n").replace("\r", "\n").strip() for cell in cells)
        rows.append(tuple((name, text) for name, text in zip(names, texts, strict=True) if text))
    return rows


def _filled(table: Table, column: str, kept: Sequence[int]) -> list[str]:
    """Return the values of a column in some rows with white space collapsed; raises InputError where one is empty."""
    values = [" ".join(table.columns[column][row].split()) for row in kept]
    empty = [row for row, value in zip(kept, values, strict=True) if not value]
    if empty:
        what = f"column {column!r} is empty in {len(empty)} of {len(values)} rows, first here"
        raise InputError(what, where=table.where(empty[0]), remedy="fill it, or take these rows out")
    return values


def _parts(table: Table, column: str, kept: Sequence[int]) -> list[str]:
    parts = []
    for row, value in zip(kept, _filled(table, column, kept), strict=True):
        part = part_of(value)
        if part is None:
            expected = ", ".join(_PARTS) + ", with a number behind it or not"
            raise InputError(f"column {column!r} names no part of the data", where=table.where(row), expected=expected)
        parts.append(part)
    return parts


def part_of(name: str) -> str | None:
    """Return the part of the data that a value or a file name means, such as ``test`` for ``Test2``, or None."""
    return _PARTS.get(re.sub(r"[ _-]?[0-9]{1,2}$", "", name.lower()))


def _task(table: Table, labels: Sequence[str]) -> tuple[Task, dict[str, int]]:
    classes = sorted(set(labels))
    if not 2 <= len(classes) <= MOST_CLASSES:
        expected = f"2 to {MOST_CLASSES} classes"
        raise InputError("classes", where=table.name, expected=expected, received=len(classes), remedy=_DOUBT)
    if max(map(len, classes)) > LONGEST_CLASS:
        what = f"a class has a name of more than {LONGEST_CLASS} characters"
        raise InputError(what, where=table.name, expected="short names, which the model must write", remedy=_DOUBT)
    _check_spread(table, labels, "label")
    return Task("classification", tuple(classes), CUE), {name: i for i, name in enumerate(classes)}


_DOUBT = "is this the label column?"


def _check_spread(table: Table, values: Sequence[str], what: str) -> None:
    """Check that a column holds the names of classes or clients, and no identifiers or free text; raises InputError."""
    different = len(set(values))
    if different > 1 and 2 * different > len(values):
        raise InputError(
            f"{different} different values in the {what} column for {len(values)} texts", where=table.name,
            expected="two or more texts for each, on average", remedy=f"is this the {what} column?",
        )  # fmt: skip


def _dropped(number: int) -> list[str]:
    return [f"rows without text, left out: {number:,}"] if number else []


def _small(examples: Sequence[Example], task: Task) -> list[str]:
    sizes = Counter(example.label for example in examples)
    few = sum(sizes[index] < FEW for index in range(len(task.classes)))
    alike = len(task.classes) - len({name.casefold() for name in task.classes})
    found = []
    if few:
        found.append(f"classes with fewer than {FEW} texts: {few} of {len(task.classes)}; their recall says little")
    if alike:
        found.append(f"names of classes that differ from another by capital letters alone: {alike}")
    return found


def repeats(examples: Sequence[Example]) -> list[str]:
    """Warn of texts that stand more than once; white space and capital letters make no difference."""
    alike: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        alike[" ".join(" ".join(text for _, text in example.sections).casefold().split())].append(example)
    repeated = [held for held in alike.values() if len(held) > 1]
    more = sum(len(held) - 1 for held in repeated)
    torn = sum(len({example.label for example in held}) > 1 for held in repeated)
    trained = [held for held in repeated if any(example.part == "train" for example in held)]
    leaked = sum(example.part == "test" for held in trained for example in held)
    found = []
    if more:
        risk = "" if all(example.part for example in examples) else "; they may stand in training and test alike"
        found.append(f"texts that repeat another: {more:,} of {len(examples):,}{risk}")
    if leaked:
        found.append(f"texts of the test part that also stand in the training part: {leaked:,}")
    if torn:
        found.append(f"texts that stand under more than one class: {torn:,}")
    return found
