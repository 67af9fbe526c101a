"""Token budgets: which part of a text a model reads when not all of it fits, and how much was left out.

Every field keeps its beginning. A field above its own budget is cut there; a text that is still too long has all its
fields cut to one common limit, the largest with which it fits, so that the longest fields give way first. Cuts fall at
the end of a word. The name of a field and the cue for the answer are never cut, and a text that fits is left alone.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from device_models.errors import InputError, nearest
from fllm.data.corpus import Task, note_text

Sections = tuple[tuple[str, str], ...]
"""Name and text of each part of a text, as an example has them."""

FIELD_OF_SECTION = {"exam": "examination", "": "text"}
"""Name of a section -> its field, where they differ."""

_FIELDS = ("history", "examination", "labs", "imaging", "text")
_WORD = re.compile(r"\S+")
_CHUNK = re.compile(r"\s*\S+|\s+$")
_BATCH = 256


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: Token ids.
        spans: First and last-plus-one character of each token; only their order and overlap with fields are used.
    """

    ids: list[int] = field(repr=False)
    spans: list[tuple[int, int]] = field(repr=False)


class Encoder(Protocol):
    """What turns texts into tokens."""

    @property
    def start(self) -> tuple[int, ...]:
        """Ids that stand before every text."""

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the tokens of each text, without those that stand before it."""


@dataclass(frozen=True)
class TokenizerEncoder:
    """A tokenizer of transformers as an encoder.

    A slow tokenizer does not tell where its tokens stand. Then words are encoded one by one to count them, and the
    result is checked on the whole text.

    Attributes:
        tokenizer: A fast or slow tokenizer.
    """

    tokenizer: Any = field(repr=False)

    @property
    def start(self) -> tuple[int, ...]:
        """The token for the beginning of a text, where the model has one."""
        first = self.tokenizer.bos_token_id
        return () if first is None else (int(first),)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the tokens of each text."""
        if not self.tokenizer.is_fast:
            return [self._encode_slowly(text) for text in texts]
        found = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        return [Encoded(*pair) for pair in zip(found["input_ids"], found["offset_mapping"], strict=True)]

    def ids_of(self, text: str) -> list[int]:
        """Return the token ids of one text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _encode_slowly(self, text: str) -> Encoded:
        spans = [chunk.span() for chunk in _CHUNK.finditer(text) for _ in self.ids_of(chunk.group())]
        return Encoded(self.ids_of(text), spans)


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens a prompt may have.

    Attributes:
        room: Most tokens of the whole prompt, with those that stand before it.
        fields: Most tokens of single fields, by name; ``text`` is the field of a text without parts.
        where: What sets the room, such as the name of a model, for messages.
    """

    room: int
    fields: Mapping[str, int] = field(default_factory=dict)
    where: str = "token budget"


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits; its ``repr`` shows no text.

    Attributes:
        tokens: Token ids of the whole prompt.
        sections: What is left of each part.
        cut: Field -> tokens kept and tokens lost.
    """

    tokens: tuple[int, ...] = field(repr=False)
    sections: Sections = field(repr=False)
    cut: Mapping[str, tuple[int, int]]

    @property
    def truncated(self) -> bool:
        """Whether anything was left out."""
        return any(lost for _, lost in self.cut.values())


def fit_prompts(texts: Sequence[Sections], task: Task, encoder: Encoder, budget: TokenBudget) -> list[Fitted]:
    """Encode texts with the cue of a task, and cut those that are too long.

    A text within its budgets is encoded as a whole: ``start``, then the tokens of :func:`fllm.data.corpus.note_text`.

    Raises:
        InputError: If a budget is for no field or below 1, or if not even names and cue fit.
    """
    limits = _field_limits(budget, texts)
    fitted: list[Fitted] = []
    for i in range(0, len(texts), _BATCH):
        batch = texts[i : i + _BATCH]
        encoded = encoder.encode([note_text(sections, task) for sections in batch])
        drafts = [_draft(*pair, limits) for pair in zip(batch, encoded, strict=True)]
        _cut_to_fit(drafts, task, encoder, budget)
        fitted += [draft.fitted(encoder.start) for draft in drafts]
    return fitted


def _field_limits(budget: TokenBudget, texts: Sequence[Sections]) -> dict[str, int]:
    limits = {_field_of(name): limit for name, limit in budget.fields.items()}
    known = set(_FIELDS)
    if not limits.keys() <= known:
        known |= {_field_of(name) for sections in texts for name, _ in sections}
    for name, limit in limits.items():
        if name not in known:
            raise InputError(f"a budget for no field, {name!r}", where="field_tokens", remedy=nearest(name, known))
        if limit < 1:
            raise InputError(
                "a budget without tokens", where=f"field_tokens.{name}", expected="1 or more", received=limit
            )
    return limits


def _field_of(name: str) -> str:
    return FIELD_OF_SECTION.get(name, name)


@dataclass
class _Part:
    """One part of a text while it is fitted.

    ``ends`` are the characters at which it may be cut, ``tokens`` is how many tokens lie before each.
    """

    name: str
    text: str
    ends: list[int]
    tokens: list[int]
    limit: int
    at: int  # index into both lists: where it is cut

    def kept(self, common: int) -> int:
        """Return the index of the last cut within the part's own and a common limit."""
        return bisect_right(self.tokens, min(self.limit, common)) - 1


@dataclass
class _Draft:
    """A text while it is fitted: its parts, its tokens, and how many of them lie outside of all parts."""

    parts: list[_Part]
    ids: list[int]
    fixed: int

    def sections(self) -> Sections:
        return tuple((part.name, part.text[: part.ends[part.at]]) for part in self.parts)

    def is_bare(self) -> bool:
        return all(part.at == 0 for part in self.parts)

    def cut(self, room: int) -> None:
        """Cut to the largest common limit with which the text has ``room`` tokens or fewer, as far as counts tell."""

        def tokens(common: int) -> int:
            return self.fixed + sum(part.tokens[part.kept(common)] for part in self.parts)

        longest = max((part.tokens[-1] for part in self.parts), default=0)
        # The first limit with which it does not fit, less one
        common = bisect_left(range(longest + 1), True, key=lambda limit: tokens(limit) > room) - 1
        for part in self.parts:
            part.at = part.kept(max(common, 0))

    def fitted(self, start: tuple[int, ...]) -> Fitted:
        cut: dict[str, tuple[int, int]] = {}
        for part in self.parts:
            kept, lost = cut.get(_field_of(part.name), (0, 0))
            own = part.tokens[part.at]
            cut[_field_of(part.name)] = (kept + own, lost + part.tokens[-1] - own)
        return Fitted((*start, *self.ids), self.sections(), cut)


def _draft(sections: Sections, encoded: Encoded, limits: Mapping[str, int]) -> _Draft:
    firsts, lasts = [first for first, _ in encoded.spans], [last for _, last in encoded.spans]
    parts, position = [], 0
    for name, text in sections:
        begin = position + (len(name) + 2 if name else 0)
        position = begin + len(text) + 1
        before = bisect_right(lasts, begin)
        ends = _ends(text, begin, lasts[before:])
        tokens = [0, *(max(0, bisect_left(firsts, begin + end) - before) for end in ends[1:])]
        limit = limits.get(_field_of(name), tokens[-1])
        parts.append(_Part(name, text, ends, tokens, limit, len(ends) - 1))
    return _Draft(parts, encoded.ids, len(encoded.spans) - sum(part.tokens[-1] for part in parts))


def _ends(text: str, begin: int, lasts: Sequence[int]) -> list[int]:
    """Return where a text may be cut: at 0, at the ends of tokens of its first word, at the end of every word."""
    words = [word.end() for word in _WORD.finditer(text)]
    if not words:
        return [0]
    inner = (last - begin for last in lasts[: bisect_left(lasts, begin + words[0])])
    return sorted({0, *inner, *words[:-1], len(text)})


def _cut_to_fit(drafts: Sequence[_Draft], task: Task, encoder: Encoder, budget: TokenBudget) -> None:
    """Cut drafts until their real tokens fit; a tokenizer may need more of them for a cut text than counted."""
    room = budget.room - len(encoder.start)
    todo = [
        (draft, room)
        for draft in drafts
        if len(draft.ids) > room or any(part.tokens[-1] > part.limit for part in draft.parts)
    ]
    while todo:
        for draft, aim in todo:
            draft.cut(aim)
        encoded = encoder.encode([note_text(draft.sections(), task) for draft, _ in todo])
        again = []
        for (draft, aim), found in zip(todo, encoded, strict=True):
            draft.ids = found.ids
            excess = len(found.ids) - room
            if excess > 0 and draft.is_bare():
                needed = f"{len(found.ids) + len(encoder.start)} tokens or more"
                raise InputError(
                    "the model's context is too short", where=budget.where, expected=needed, received=budget.room
                )
            if excess > 0:
                again.append((draft, aim - excess))
        todo = again


RULE = (
    "every field keeps its beginning, cut at the end of a word: to its own budget, and where the whole text is still "
    "too long, all fields to one common limit, the largest that fits; names of fields and the cue are never cut"
)
"""What was done to texts that are too long, for reports."""


def truncation_facts(fitted: Sequence[Fitted], budget: TokenBudget) -> dict[str, Any]:
    """Count what was left out, as JSON.

    Returns:
        ``rule``, ``max_tokens``, ``field_tokens``, ``prompts_cut``, and ``fields``: for each field that any text has,
        the ``examples`` with it, how many were ``cut``, and all their ``tokens``, of which ``tokens_lost`` were lost.
    """
    fields: dict[str, dict[str, int]] = {}
    for prompt in fitted:
        for name, (kept, lost) in prompt.cut.items():
            row = fields.setdefault(name, {"examples": 0, "cut": 0, "tokens": 0, "tokens_lost": 0})
            row["examples"] += 1
            row["cut"] += lost > 0
            row["tokens"] += kept + lost
            row["tokens_lost"] += lost
    order = sorted(fields, key=lambda name: (_FIELDS.index(name) if name in _FIELDS else len(_FIELDS), name))
    return {
        "rule": RULE,
        "max_tokens": budget.room,
        "field_tokens": dict(budget.fields),
        "prompts_cut": sum(prompt.truncated for prompt in fitted),
        "fields": {name: fields[name] for name in order},
    }


def chunks(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Cut a document into pieces of ``size`` tokens, for language modelling.

    The last piece may be shorter; a single token left over has nothing to predict and is dropped.

    Raises:
        InputError: If the pieces would have nothing to predict.
    """
    if size < 2:
        raise InputError("pieces of a document", where="max_tokens", expected="2 tokens or more", received=size)
    pieces = (tuple(tokens[i : i + size]) for i in range(0, len(tokens), size))
    return [piece for piece in pieces if len(piece) >= 2]
