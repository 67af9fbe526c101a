"""Whether a statement denies what it names: "no evidence of appendicitis".

A compact NegEx: phrases that deny what follows or what precedes them, within five words, unless a phrase in between
ends their scope; and phrases that look like a denial and are none. The published evaluation runs the algorithm through
spaCy and a biomedical model of half a gigabyte, to find entities; answers here are phrases of a few words, in which
the entity is the name that is looked for.

Source: Chapman, Bridewell, Hanbury, Cooper and Buchanan, Journal of Biomedical Informatics 34, 301 (2001).
Approximation: fewer phrases than the paper's list, those that can stand in the answer to "what is the diagnosis?".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

REACH = 5
"""Words that may stand between a denial and what it denies."""

_BEFORE = (
    "no", "not", "without", "never", "none of", "neither", "nor", "denies", "denied", "denying", "declined", "cannot",
    "cant", "couldnt", "doesnt", "dont", "didnt", "isnt", "arent", "wasnt", "werent", "no evidence of", "no sign of",
    "no signs of", "no signs or symptoms of", "without evidence of", "without signs of", "no features of",
    "no findings of", "no suspicion of", "absence of", "negative for", "free of", "lack of", "fails to reveal",
    "failed to reveal", "doubt", "rule out", "rules out", "ruled out", "ruling out", "ro", "exclude", "excludes",
    "excluding", "evaluate for", "unlikely to be", "unlikely", "rather than", "instead of",
)  # fmt: skip
_AFTER = (
    "unlikely", "less likely", "doubtful", "ruled out", "excluded", "was not", "were not", "is not", "not present",
)  # fmt: skip
_NO_DENIAL = (
    "no doubt", "without doubt", "without a doubt", "not only", "not necessarily", "not certain if",
    "not certain whether", "no change", "no significant change", "no increase", "no further", "without further",
    "without difficulty", "gram negative", "not rule out", "not ruled out", "not been ruled out", "not be ruled out",
    "cannot rule out", "cannot be ruled out", "cant be ruled out", "cannot exclude", "not exclude", "not excluded",
    "not be excluded", "cannot be excluded", "cant be excluded", "not unlikely",
)  # fmt: skip
_ENDS = (
    "but", "however", "nevertheless", "although", "though", "yet", "still", "except", "apart from", "aside from",
    "which", "instead", "rather", "secondary to", "cause of", "causes of", "source of", "origin of", "reason for",
    "etiology of",
)  # fmt: skip


_STEMS = "infl|infec|perf|rupt|gangr|necro|abscess|append|chole|divert|pancrea|gallb"


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without any punctuation; a prefix "non" is a word of its own."""
    plain = re.sub(r"[^\w\s]|_", "", re.sub(r"\bnon-(?=\w)", "non ", text.lower()))
    return re.sub(rf"\bnon(?={_STEMS})", "non ", plain).split()


def negated(words: Sequence[str], start: int, end: int) -> bool:
    """Return whether a text denies the words ``[start, end)``, given as :func:`words_of` returns them."""
    if start and words[start - 1] == "non":
        return True
    masked = frozenset(place for span in _places(words, _NO_DENIAL, frozenset()) for place in range(*span))
    stops = _places(words, _ENDS, frozenset())
    before = [last for _, last in _places(words, _BEFORE, masked) if last <= start]
    after = [first for first, _ in _places(words, _AFTER, masked) if first >= end]
    return any(start - last <= REACH and not _between(stops, last, start) for last in before) or any(
        first - end <= REACH and not _between(stops, end, first) for first in after
    )


def _between(stops: Sequence[tuple[int, int]], first: int, last: int) -> bool:
    return any(first <= begin and end <= last for begin, end in stops)


def _places(words: Sequence[str], phrases: Sequence[str], masked: frozenset[int]) -> list[tuple[int, int]]:
    """Return where phrases stand, as word ranges, those that touch a masked word left out."""
    found = []
    for phrase in phrases:
        parts = phrase.split()
        for first in range(len(words) - len(parts) + 1):
            inside = range(first, first + len(parts))
            if list(words[first : first + len(parts)]) == parts and masked.isdisjoint(inside):
                found.append((first, first + len(parts)))
    return found
