"""Any text as documents: plain files parted at blank lines, or one column of a table; a share of them held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_models import InputError
from fllm.data.passages import SUFFIXES, paragraphs
from fllm.data.table_files import DELIMITERS, read_columns, read_text, suffix_of
from hwsim.randomness import seed_of


@dataclass(frozen=True)
class Documents:
    """The documents of some files, read anew at each pass, one file at a time.

    Attributes:
        paths: Plain text, or tables (CSV, TSV, JSON lines), each also gzipped.
        column: Column of a table that holds the text.
    """

    paths: tuple[Path, ...]
    column: str = "text"

    def __iter__(self) -> Iterator[str]:
        """Yield each document that has any text, in the order of the files.

        Raises:
            InputError: If a file is absent, unreadable, malformed, empty or of an unknown kind.
        """
        for path in self.paths:
            texts = self._cells(path) if suffix_of(path) in DELIMITERS else _plain(path)
            yield from (text for text in texts if text)

    def _cells(self, path: Path) -> Iterator[str]:
        return (cell.replace("\r\n", "\n").strip() for cell in read_columns(path, [self.column]).columns[self.column])

    def sha256(self) -> str:
        """Return a digest over the bytes of all files as stored."""
        digest = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def _plain(path: Path) -> Iterator[str]:
    if suffix_of(path) not in SUFFIXES:
        expected = f"{', '.join([*SUFFIXES, *DELIMITERS])}, each also with .gz behind it"
        raise InputError("unknown kind of text file", where=path.name, expected=expected)
    return paragraphs(read_text(path)[0])


@dataclass(frozen=True)
class Split:
    """Documents to train on and documents held out.

    Without documents of its own for validation, a document is held out by a key of its text, so neither the order of
    the documents nor their number matters, and copies of one document fall on the same side.

    Attributes:
        corpus: Documents to train on.
        validation: Documents held out; None takes a share of the corpus.
        share: That share.
        seed: Decides which.
    """

    corpus: Documents
    validation: Documents | None
    share: float
    seed: int

    def training(self) -> Iterator[str]:
        """Yield the documents to train on."""
        return iter(self.corpus) if self.validation else (text for text in self.corpus if not self._is_held_out(text))

    def held_out(self) -> Iterator[str]:
        """Yield the documents held out."""
        return iter(self.validation) if self.validation else (text for text in self.corpus if self._is_held_out(text))

    def _is_held_out(self, text: str) -> bool:
        return seed_of(self.seed, "held out", text) < self.share * 2**63


def checked(paths: Sequence[Path], column: str) -> Documents:
    """Return documents of files that can be read; raises InputError for the first that cannot."""
    found = Documents(tuple(paths), column)
    for path in paths:
        next(iter(Documents((path,), column)), None)
    return found
