"""Age of a patient from the first words of the history, where it was not redacted."""

from __future__ import annotations

import re

YOUNGEST, OLDEST = 18, 120
"""Ages outside are taken for misreadings [years]; the release holds adults only."""

_OPENING = 300
"""Characters of a history within which the patient is introduced; later ages are those of relatives and of events."""

_RELATIVE = (
    r"(?:mother|father|parent|brother|sister|sibling|son|daughter|child|husband|wife|spouse|partner|aunt|uncle|cousin"
    r"|grandmother|grandfather|twin)s?"
)
_PERSON = r"(?:male|female|man|woman|gentleman|lady|patient)\b"
_AGE = re.compile(
    rf"""
    (?<![\w.,/-])
    (?:(?:aged[ ]|(?i:age):[ ]?)(?P<stated>[0-9]{{1,3}}|_{{2,}})(?![\w/%-]|[.,]\d)
    |(?P<number>[0-9]{{1,3}}|_{{2,}})[ -]?
     (?:(?i:years?|yrs?)[ -](?i:of[ ]age|olds?)\b   # 57 year old, 57-year-old, 57 years of age
     |(?i:y\.?[ ]?/?[ ]?o\.?)(?![a-z])              # 57yo, 57 y/o, 57 y.o.
     |(?i:{_PERSON})                                # 57 male
     |(?:M|F)\b(?![ ](?i:foley|catheter|drain|sheath|tube|pigtail|french))))   # 57M, but no 18F Foley
    """,
    re.VERBOSE,
)
_BEFORE = re.compile(rf"\b{_RELATIVE}\b[^.;]{{0,30}}$", re.IGNORECASE)
_AFTER = re.compile(rf"[ ]?(?:old[ ])?{_RELATIVE}\b", re.IGNORECASE)
_TEMPERATURE = re.compile(r"(?:temp\w*|fevers?|febrile|\bT|tmax|to|of|at)[ :=]*$", re.IGNORECASE)


def age_of(history: str) -> int | None:
    """Return the patient's age [years] as the opening of a history states it.

    The first mention decides: when it is masked (``___ year old``), relates to a relative or is no adult's age, the
    age is unknown, and no later number takes its place.
    """
    for match in _AGE.finditer(history[:_OPENING]):
        written = match["stated"] or match["number"]
        before = history[: match.start()]
        if match.group().endswith(("M", "F")) and _TEMPERATURE.search(before[-20:]):
            continue  # a fever of 101F
        if written.startswith("_") or _BEFORE.search(before) or _AFTER.match(history, match.end()):
            return None
        return int(written) if YOUNGEST <= int(written) <= OLDEST else None
    return None
