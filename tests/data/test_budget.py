from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_models.errors import InputError
from fllm.data import Cohort, Task, diagnosis_corpus
from fllm.data.budget import Encoded, Sections, TokenBudget, TokenizerEncoder, chunks, fit_prompts, truncation_facts
from fllm.data.corpus import note_text

TASK = Task("diagnosis", ("yes", "no"), "diagnosis:")
SECRET = "zebrafish"


@dataclass(frozen=True)
class Pieces:
    """An encoder without a model: a text falls into pieces of a pattern, whose characters make their ids."""

    pattern: str = r"\w{1,4}|[^\w\s]|\n"
    start: tuple[int, ...] = (1,)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        found = [list(re.finditer(self.pattern, text)) for text in texts]
        return [Encoded([hash_of(piece.group()) for piece in own], [piece.span() for piece in own]) for own in found]


def hash_of(piece: str) -> int:
    return 2 + sum(ord(letter) * 131**i for i, letter in enumerate(piece))


@dataclass(frozen=True)
class Slow:
    """A tokenizer of transformers that tells no positions, and joins words across a blank where it can."""

    is_fast: bool = False
    bos_token_id: int | None = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [hash_of(piece) for piece in re.findall(r"a a|\w{1,3}|\S|\n", text)]}


ENCODERS: list[Any] = [
    Pieces(), Pieces(start=()), Pieces(r"\s?\w{1,4}|\s?[^\w\s]|\s"), Pieces(r"\w+\s?|[^\w\s]|\s"),
    TokenizerEncoder(Slow()), TokenizerEncoder(Slow(bos_token_id=7)),
]  # fmt: skip

words = st.lists(st.sampled_from(["a", "a", "wbc", "hepatobiliary", "4.5", "é_", "."]), max_size=30).map(" ".join)
notes: st.SearchStrategy[Sections] = st.lists(
    st.tuples(st.sampled_from(["history", "exam", "labs", "imaging", ""]), words),
    max_size=4, unique_by=lambda section: section[0],
).map(tuple)  # fmt: skip


def _whole(encoder: Any, sections: Sections) -> tuple[int, ...]:
    return (*encoder.start, *encoder.encode([note_text(sections, TASK)])[0].ids)


def _end(encoder: Any, sections: Sections) -> list[int]:
    """Return the tokens that overlap the cue."""
    text = note_text(sections, TASK)
    found = encoder.encode([text])[0]
    if isinstance(encoder, TokenizerEncoder):  # a slow tokenizer's spans are those of whole words with their blanks
        return found.ids[-len(encoder.encode([TASK.cue])[0].ids) :]
    return found.ids[-sum(last > len(text) - len(TASK.cue) for _, last in found.spans) :]


def _bare(encoder: Any, sections: Sections) -> int:
    return len(_whole(encoder, tuple((name, "") for name, _ in sections)))


@example(sections=(("history", ""), ("", "a")), encoder=ENCODERS[4], spare=0, fields={})
@given(
    sections=notes, encoder=st.sampled_from(ENCODERS), spare=st.integers(0, 60),
    fields=st.dictionaries(st.sampled_from(["history", "examination", "labs", "text"]), st.integers(1, 12)),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_prompts_fit_and_keep_beginnings_and_cue(
    sections: Sections, encoder: Any, spare: int, fields: dict[str, int]
) -> None:
    room = _bare(encoder, sections) + spare
    (fitted,) = fit_prompts([sections], TASK, encoder, TokenBudget(room, fields))
    assert len(fitted.tokens) <= room
    assert fitted.tokens == _whole(encoder, fitted.sections)
    assert _end(encoder, fitted.sections) == _end(encoder, sections)
    assert [name for name, _ in fitted.sections] == [name for name, _ in sections]
    for (name, kept), (_, text) in zip(fitted.sections, sections, strict=True):
        field = {"exam": "examination", "": "text"}.get(name, name)
        assert text.startswith(kept)
        assert fitted.cut[field][0] <= fields.get(field, 1000)
        assert (fitted.cut[field][1] > 0) == (kept != text)
    if len(_whole(encoder, sections)) <= room and not fields:
        assert fitted.sections == sections and not fitted.truncated


@given(
    sections=notes, encoder=st.sampled_from(ENCODERS[:4]), spare=st.integers(0, 40),
    field=st.sampled_from(["history", "labs"]), limit=st.integers(1, 12),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_a_larger_budget_never_keeps_less(sections: Sections, encoder: Any, spare: int, field: str, limit: int) -> None:
    room = _bare(encoder, sections) + spare
    budgets = [TokenBudget(room, {field: limit}), TokenBudget(room + 3, {field: limit})]
    smaller, larger = (fit_prompts([sections], TASK, encoder, budget)[0].cut for budget in budgets)
    assert all(larger[name][0] >= kept for name, (kept, _) in smaller.items())
    (wider,) = fit_prompts([sections], TASK, encoder, TokenBudget(room, {field: limit + 2}))
    assert wider.cut.get(field, (0, 0))[0] >= smaller.get(field, (0, 0))[0]


def test_a_cut_text_that_takes_more_tokens_than_counted_is_cut_again() -> None:
    """A word at the end of a line falls into twos here, and is one token elsewhere."""
    encoder = Pieces(r"\w+(?= \w)|\w{1,2}|[^\w\s]|\n")
    sections = (("history", " ".join(["hepatobiliary"] * 9)),)
    bare = _bare(encoder, sections)
    kept = []
    for spare in (8, 7, 6):
        (fitted,) = fit_prompts([sections], TASK, encoder, TokenBudget(bare + spare))
        assert fitted.tokens == _whole(encoder, fitted.sections) and len(fitted.tokens) <= bare + spare
        kept.append(fitted.sections[0][1].count("hepatobiliary"))
    assert kept == [2, 1, 0]


@given(sections=notes, spare=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_the_common_limit_is_the_largest_that_fits(sections: Sections, spare: int) -> None:
    """Trying every limit finds no larger one."""
    encoder = Pieces()
    room = _bare(encoder, sections) + spare
    (fitted,) = fit_prompts([sections], TASK, encoder, TokenBudget(room))
    best: Sections = ()
    for limit in range(200):
        names = ("examination" if name == "exam" else name or "text" for name, _ in sections)
        (cut,) = fit_prompts([sections], TASK, encoder, TokenBudget(10_000, dict.fromkeys(names, max(limit, 1))))
        shown = cut.sections if limit else tuple((name, "") for name, _ in sections)
        if len(_whole(encoder, shown)) <= room:
            best = shown
    assert fitted.sections == best


def test_the_longest_fields_give_way_first() -> None:
    sections = (("history", "a " * 30 + "a"), ("labs", "a a a"), ("imaging", "a " * 9 + "a"))
    (fitted,) = fit_prompts([sections], TASK, Pieces(), TokenBudget(_bare(Pieces(), sections) + 25))
    assert fitted.cut == {"history": (12, 19), "labs": (3, 0), "imaging": (10, 0)}
    (fitted,) = fit_prompts([sections], TASK, Pieces(), TokenBudget(_bare(Pieces(), sections) + 15))
    assert fitted.cut == {"history": (6, 25), "labs": (3, 0), "imaging": (6, 4)}
    (fitted,) = fit_prompts([sections], TASK, Pieces(), TokenBudget(1000, {"history": 4, "text": 1}))
    assert fitted.cut == {"history": (4, 27), "labs": (3, 0), "imaging": (10, 0)}


def test_a_cut_falls_at_the_end_of_a_word_unless_the_first_is_too_long() -> None:
    sections = (("history", "abdominal pain"),)
    kept = [
        fit_prompts([sections], TASK, Pieces(), TokenBudget(1000, {"history": limit}))[0].sections[0][1]
        for limit in (1, 2, 3, 4)
    ]
    assert kept == ["abdo", "abdomina", "abdominal", "abdominal pain"]


def test_budgets_go_by_the_name_of_the_field_or_of_its_section() -> None:
    sections = (("exam", "a a a"), ("", "a a a"), ("title", "a a a"))
    for names in (("examination", "text"), ("exam", "")):
        budget = TokenBudget(100, {names[0]: 1, names[1]: 2, "title": 2})
        assert fit_prompts([sections], TASK, Pieces(), budget)[0].cut == {
            "examination": (1, 2), "text": (2, 1), "title": (2, 1)
        }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"histroy": 3}, "field_tokens: a budget for no field, 'histroy'; did you mean history"),
        ({"history": 0}, "field_tokens.history: a budget without tokens; expected 1 or more; received 0"),
        ({"exam": -1}, "field_tokens.examination"),
    ],
)
def test_wrong_budgets_are_refused(fields: dict[str, int], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        fit_prompts([(("history", SECRET),)], TASK, Pieces(), TokenBudget(100, fields))


def test_a_context_for_less_than_names_and_cue_is_refused() -> None:
    sections = (("history", SECRET), ("labs", SECRET))
    needed = _bare(Pieces(), sections)
    budget = TokenBudget(needed - 1, where="a-model")
    with pytest.raises(InputError, match=f"a-model: the model's context is too short; expected {needed}") as caught:
        fit_prompts([sections], TASK, Pieces(), budget)
    assert SECRET not in str(caught.value)
    assert fit_prompts([sections], TASK, Pieces(), TokenBudget(needed))[0].cut["labs"] == (0, 3)


def test_nothing_of_a_text_shows_in_a_repr() -> None:
    sections = (("history", SECRET),)
    (fitted,) = fit_prompts([sections], TASK, Pieces(), TokenBudget(100))
    assert SECRET not in repr(fitted) and str(fitted.tokens[3]) not in repr(fitted)
    assert repr(Pieces().encode([SECRET])[0]) == "Encoded()"


def test_facts_count_what_was_left_out() -> None:
    texts: list[Sections] = [(("history", "a a a a"), ("labs", "a")), (("history", "a"),), (("labs", "a a a"),), ()]
    budget = TokenBudget(100, {"history": 3, "labs": 1})
    facts = truncation_facts(fit_prompts(texts, TASK, Pieces(), budget), budget)
    assert json.loads(json.dumps(facts)) == facts
    assert {key: value for key, value in facts.items() if key != "rule"} == {
        "max_tokens": 100,
        "field_tokens": {"history": 3, "labs": 1},
        "prompts_cut": 2,
        "fields": {
            "history": {"examples": 2, "cut": 1, "tokens": 5, "tokens_lost": 1},
            "labs": {"examples": 2, "cut": 1, "tokens": 4, "tokens_lost": 2},
        },
    }
    assert "end of a word" in facts["rule"]
    assert fit_prompts([], TASK, Pieces(), budget) == []


def test_the_shipped_tokenizer(cohort: Cohort) -> None:
    """Notes that fit are encoded as a whole; others fit to the token, and are what their kept parts give."""
    from importlib import resources

    from transformers import AutoTokenizer

    folder = resources.files("fllm.model").joinpath("assets", "fllm-tiny-bitnet")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    corpus = diagnosis_corpus(cohort)
    texts = [example.sections for example in corpus.examples[:300]]

    def encoded(sections: Sections) -> tuple[int, ...]:
        ids = tokenizer(note_text(sections, corpus.task), add_special_tokens=False)["input_ids"]
        return (tokenizer.bos_token_id, *ids)

    encoder = TokenizerEncoder(tokenizer)
    whole = fit_prompts(texts, corpus.task, encoder, TokenBudget(4096))
    assert [one.tokens for one in whole] == [encoded(sections) for sections in texts]
    assert not any(one.truncated for one in whole)
    cut = fit_prompts(texts, corpus.task, encoder, TokenBudget(96, {"labs": 20}))
    assert [one.tokens for one in cut] == [encoded(one.sections) for one in cut]
    assert max(len(one.tokens) for one in cut) == 96
    assert all(one.tokens[-2:] == whole[0].tokens[-2:] for one in cut)
    total = [sum(kept + lost for kept, lost in one.cut.values()) for one in cut]
    assert total == [sum(kept for kept, _ in one.cut.values()) for one in whole]
    assert encoder.ids_of("labs: wbc high") == tokenizer("labs: wbc high", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, []), (2, [2]), (4, [4]), (5, [4]), (6, [4, 2]), (11, [4, 4, 3])]
)
def test_documents_are_cut_into_pieces(count: int, expected: list[int]) -> None:
    pieces = chunks(range(count), 4)
    assert [len(piece) for piece in pieces] == expected
    assert [token for piece in pieces for token in piece] == list(range(sum(expected)))


def test_pieces_need_something_to_predict() -> None:
    with pytest.raises(InputError, match="2 tokens or more; received 1"):
        chunks(range(9), 1)
