"""Text files as passages for language modelling."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from device_models.errors import InputError
from fllm.data.corpora import part_of, repeats
from fllm.data.corpus import Corpus, Example, Task
from fllm.data.table_files import read_text, suffix_of

PASSAGE = 2000
"""[characters] a passage holds at most."""

SUFFIXES = (".txt", ".text", ".md")
"""Files that hold text alone."""

_ABOUT = ("readme", "license", "licence", "changelog", "citation")


def read_texts(paths: Sequence[Path]) -> Corpus:
    """Read text files, plain or gzipped, as passages for language modelling.

    Blank lines part paragraphs. Neighbouring paragraphs are joined to passages of at most ``PASSAGE`` characters; only
    a longer paragraph is cut, at white space where it has any. Nothing but white space is lost. Each file is a group
    that carries its name without suffix; files called train and test (and validation) are parts instead.

    Args:
        paths: Files, or folders whose text files are meant, those named README and the like left out.

    Raises:
        InputError: If there is no file, or one is no text file, unreadable, empty, or called like another.
    """
    files = _text_files(paths)
    names = [Path(file.name.removesuffix(".gz")).stem for file in files]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{count} files are called {name!r}", remedy="name each file after its client")
    parts = [part_of(name) for name in names]
    named = None not in parts and {"train", "test"} <= set(parts)
    digest = hashlib.sha256()
    examples: list[Example] = []
    for file, name, part in zip(files, names, parts, strict=True):
        text, stored = read_text(file)
        digest.update(stored)
        model = Example(0, (), None, part=part) if named else Example(0, (), None, group=name)
        for passage in passages(text):
            examples.append(replace(model, key=len(examples) + 1, sections=(("", passage),)))
    source = files[0].name if len(files) == 1 else (files[0].parent.name or "text files")
    return Corpus(Task("language"), tuple(examples), False, digest.hexdigest(), source, tuple(repeats(examples)))


def _text_files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [each for each in path.iterdir() if suffix_of(each) in SUFFIXES and not _about(each)]
        elif suffix_of(path) not in SUFFIXES:
            expected = f"{', '.join(SUFFIXES)}, each also with .gz behind it"
            raise InputError("unknown kind of text file", where=path.name, expected=expected)
        else:
            files.append(path)
    if not files:
        where = ", ".join(path.name for path in paths) or None
        raise InputError("no text files", where=where, expected=f"files that end in {', '.join(SUFFIXES)}")
    return sorted(files, key=lambda file: (file.name, str(file)))


def _about(path: Path) -> bool:
    """Tell whether a file of a folder speaks about its other files, or is no file."""
    return not path.is_file() or path.name.lower().startswith(_ABOUT)


def passages(text: str, longest: int = PASSAGE) -> list[str]:
    """Part a text into passages of at most so many characters, at blank lines wherever it has them."""
    found: list[str] = []
    for paragraph in paragraphs(text):
        for piece in _pieces(paragraph, longest):
            joined = f"{found[-1]}\n\n{piece}" if found else piece
            if found and len(joined) <= longest:
                found[-1] = joined
            else:
                found.append(piece)
    return found


def paragraphs(text: str) -> Iterator[str]:
    """Yield the parts of a text between its blank lines, without white space around them; the first may be empty."""
    text, start = text.replace("\r\n", "\n").replace("\r", "\n"), 0
    for blank in re.finditer(r"\n(?:[^\S\n]*\n)+", text):
        yield text[start : blank.start()].strip()
        start = blank.end()
    yield text[start:].strip()


def _pieces(paragraph: str, longest: int) -> list[str]:
    pieces = []
    while len(paragraph) > longest:
        blank = max(paragraph.rfind(mark, 1, longest + 1) for mark in " \n\t")
        cut = blank if blank > 0 else longest
        pieces.append(paragraph[:cut].rstrip())
        paragraph = paragraph[cut:].lstrip()
    return [*pieces, paragraph] if paragraph else pieces
