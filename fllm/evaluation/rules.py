"""Which class a written answer names, by the published rules of the clinical release.

The published rules ask whether an answer names one given diagnosis. A closed set of classes needs a choice: of all
classes that the first item of an answer names and does not deny, the one named first counts. An answer that names more
than one, in all its items, is counted as ambiguous; one whose first item names none is unparsable, and wrong.

Source: Hager et al., Nature Medicine 30, 2613 (2024), and its evaluation code (MIT licence). A word matches a name if
``round(ratio) > 90``, as its fuzzy matching rounds ratios to whole numbers.
Approximation: a heading is not required, as prompts end in it; an answer also ends at a treatment within a line;
explanations in lists are cut at a dash or colon that a blank follows, so that hyphenated words stay whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rapidfuzz import fuzz

from fllm.evaluation.negation import negated, words_of

SIMILAR = 90
"""A word is a name if they are more similar than this [percent], which forgives a letter or two."""


class Sign(NamedTuple):
    """A place and what is wrong with it, as pieces of words: both must be named, neither denied."""

    location: str
    modifiers: tuple[str, ...]


_INFLAMED = ("infect", "inflam", "abscess", "perf")
STRICT: dict[str, tuple[Sign, ...]] = {
    "appendicitis": (Sign("appendi", ("gangren", "rupture", "necros", *_INFLAMED)),),
    "cholecystitis": (
        Sign("gallbladder", ("gangren", "necros", *_INFLAMED)),
        Sign("cholangitis", ("cholangitis",)),
    ),
    "diverticulitis": (Sign("diverticul", ("rupture", *_INFLAMED)),),
    "pancreatitis": (Sign("pancrea", ("gangren", "necros", "infect", "inflam", "abscess")),),
}
"""Other ways to name each diagnosis."""

GRACIOUS: dict[str, tuple[Sign, ...]] = {
    "appendicitis": (),
    "cholecystitis": (Sign("acute gallbladder", ("disease", "attack")), Sign("acute biliary", ("colic",))),
    "diverticulitis": (Sign("acute colonic", ("perfor",)), Sign("sigmoid", ("perfor", "colitis"))),
    "pancreatitis": (),
}
"""Ways that the published headline numbers accept beside those."""

_HEADING = re.compile(r"\b(?:final\s+)?diagnosis\s*:", re.IGNORECASE)
_TREATMENT = re.compile(r"\btreatments?\b[^:\n]*:.*", re.IGNORECASE | re.DOTALL)
_SECTIONS = re.compile(
    r"\b(?:rationale|note|recommendation|explanation|finding|management|action|plan|reasoning|assessment|justification"
    r"|test|notification|impression|background|other[^:\n]*diagnos[ie]s[^:\n]*|additional[^:\n]*)s?\s*:.*",
    re.IGNORECASE | re.DOTALL,
)
_INTRODUCTION = re.compile(r"\A\s*based on[^\n]*:\s*", re.IGNORECASE)
_FIRST_OF_LIST = re.compile(r"^\s*(?:1[.)]|\*+)\s*(\S.*)", re.MULTILINE)
_SENTENCE = re.compile(r"diagnos[ie]s[^.\n]*?\bis\b([^.\n]*)", re.IGNORECASE)
_PATIENT_HAS = re.compile(r"\A.*?\bpatient has\b", re.IGNORECASE | re.DOTALL)
_ITEMS = re.compile(r"[,.\n]|\b(?:and|or|vs|versus)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """What an answer names.

    Attributes:
        label: The class, or None where no class can be told.
        ambiguous: Whether it names more than one.
    """

    label: str | None
    ambiguous: bool


class _Match(NamedTuple):
    start: int
    end: int
    ratio: float
    label: str


def parse_answer(text: str) -> str:
    """Return the item of an answer that counts: its first, without heading, treatment, list number, explanation."""
    return next(iter(_items(text)), "")


def diagnosis_of(text: str, *, gracious: bool = True) -> str | None:
    """Return the diagnosis that an answer names, or None; ``gracious`` accepts more, as the published headline does."""
    return read_diagnosis(text, gracious=gracious).label


def read_diagnosis(text: str, *, gracious: bool = True) -> Reading:
    """Read an answer to the clinical task."""
    named = [_diagnoses(words_of(item), gracious) for item in _items(text)]
    first = min(named[0], default=None) if named else None
    return Reading(first and first.label, len({match.label for item in named for match in item}) > 1)


def class_of(text: str, classes: Sequence[str]) -> str | None:
    """Return the class that an answer to any other classification task names, or None."""
    return read_class(text, classes).label


def read_class(text: str, classes: Sequence[str]) -> Reading:
    """Read an answer to a classification task: the class whose name stands first in its first line.

    Case and punctuation do not matter, words may be misspelt as in diagnoses, and what is denied does not count. Where
    names overlap, the longest counts.
    """
    words = words_of(next((line for line in text.splitlines() if line.strip()), ""))
    found = [match for name in classes for match in _named(words, name)]
    kept: list[_Match] = []
    for match in sorted(found, key=lambda m: (m.start, m.start - m.end, -m.ratio)):
        if not kept or match.start >= kept[-1].end:
            kept.append(match)
    kept = [match for match in kept if not negated(words, match.start, match.end)]
    return Reading(kept[0].label if kept else None, len({match.label for match in kept}) > 1)


def _items(text: str) -> list[str]:
    """Return the diagnoses that an answer lists, first the one that counts."""
    heading = _HEADING.search(text)
    answer = text[heading.end() :] if heading else text
    answer = _TREATMENT.sub("", answer)
    answer = _SECTIONS.sub("", _INTRODUCTION.sub("", answer)).strip()
    listed = _FIRST_OF_LIST.search(answer)
    if listed:
        answer = re.sub(r"[-:] .*", "", listed.group(1))
    answer = re.split(r"\n\s*\n", answer, maxsplit=1)[0]
    sentence = _SENTENCE.search(answer)
    answer = _PATIENT_HAS.sub("", sentence.group(1) if sentence else answer, count=1)
    return [item.strip() for item in _ITEMS.split(answer) if item.strip()]


def _diagnoses(words: list[str], gracious: bool) -> list[_Match]:
    """Return what a single item names and does not deny."""
    found = [
        match for name in STRICT for match in _named(words, name) if not negated(words, match.start, match.end)
    ]  # fmt: skip
    for name, signs in STRICT.items():
        for sign in (*signs, *(GRACIOUS[name] if gracious else ())):
            there = _affirmed(words, sign.location)
            if there and any(_affirmed(words, modifier) for modifier in sign.modifiers):
                found.append(_Match(*there[0], 0.0, name))
    return found


def _named(words: list[str], name: str) -> list[_Match]:
    """Return where a name stands, misspelt or not."""
    parts = words_of(name)
    wanted, found = " ".join(parts), []
    for start in range(len(words) - len(parts) + 1):
        ratio = fuzz.ratio(" ".join(words[start : start + len(parts)]), wanted)
        if parts and round(ratio) > SIMILAR:
            found.append(_Match(start, start + len(parts), ratio, name))
    return found


def _affirmed(words: list[str], piece: str) -> list[tuple[int, int]]:
    """Return the word ranges in which a piece of text stands and is not denied."""
    text, found = " ".join(words), []
    for mark in re.finditer(re.escape(piece), text):
        start = text[: mark.start()].count(" ")
        end = start + mark.group().count(" ") + 1
        if not negated(words, start, end):
            found.append((start, end))
    return found
