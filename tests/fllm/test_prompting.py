"""Examples as token ids: nothing is cut that fits, what is cut is counted, and pieces of a text hold all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from device_models import InputError
from fllm.config import RunConfig
from fllm.data import FIELDS, Example, Task, diagnosis_corpus, load_synthetic
from fllm.data.budget import TokenBudget
from fllm.data.corpus import note_text
from fllm.evaluation import Prompt
from fllm.prompting import encode
from tests.fllm.small import SHIPPED

TASK = Task("classification", ("yes", "no"), "answer")
LANGUAGE = Task("language")
WORDS = ("answer", "note", "plan", ":", *(f"w{i}" for i in range(40)))


def of_words(bos: bool = True) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token for each word, so that everything can be counted by hand."""
    vocabulary = {"<s>": 0, "?": 1} | {word: 2 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if bos else None, unk_token="?")


def text(count: int, first: int = 0) -> str:
    return " ".join(f"w{i % 40}" for i in range(first, first + count))


def words(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(prompt.tokens))


@pytest.fixture(scope="module")
def shipped() -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(SHIPPED)
    return found


# Labelled texts.


def test_note_that_fits_is_the_beginning_and_the_tokens_of_the_note(shipped: PreTrainedTokenizerBase) -> None:
    corpus = diagnosis_corpus(load_synthetic(40, n_hospitals=2, seed=0), FIELDS)
    encoded = encode(corpus.examples, corpus.task, shipped, TokenBudget(100_000))
    for example, prompt in zip(corpus.examples, encoded.of(corpus.examples), strict=True):
        ids = shipped(note_text(example.sections, corpus.task), add_special_tokens=False)["input_ids"]
        assert prompt.tokens == (shipped.bos_token_id, *ids)
        assert (prompt.label, prompt.truncated) == (example.label, False)
    assert encoded.facts["truncated_prompts"] == encoded.facts["truncation"]["prompts_cut"] == 0


def test_note_with_the_budget_of_the_default_run_ends_in_its_cue(shipped: PreTrainedTokenizerBase) -> None:
    corpus = diagnosis_corpus(load_synthetic(40, n_hospitals=2, seed=0), FIELDS)
    room = RunConfig().max_tokens // 2
    encoded = encode(corpus.examples, corpus.task, shipped, TokenBudget(room))
    cue = shipped.decode(shipped("\n" + corpus.task.cue, add_special_tokens=False)["input_ids"])
    for prompt in encoded.of(corpus.examples):
        assert len(prompt.tokens) <= room
        assert prompt.tokens[0] == shipped.bos_token_id
        assert shipped.decode(prompt.tokens).endswith(cue)
    assert encoded.facts["truncated_prompts"] > 0


@pytest.mark.parametrize("bos", [True, False])
def test_facts_of_a_small_example_by_hand(bos: bool) -> None:
    """Room for 12 tokens: the beginning, two names with their colons, and the cue leave 6 for both fields."""
    tokenizer = of_words(bos)
    examples = [
        Example(1, (("note", text(2)), ("plan", text(1, 30))), 0),
        Example(2, (("note", text(9)), ("plan", text(2, 30))), 1),
        Example(3, (("note", text(3)),), 1),
    ]
    room = 12 if bos else 11
    encoded = encode(examples, TASK, tokenizer, TokenBudget(room))
    start = "<s> " if bos else ""
    assert [words(prompt, tokenizer) for prompt in encoded.of(examples)] == [
        f"{start}note : w0 w1 plan : w30 answer",
        f"{start}note : w0 w1 w2 w3 plan : w30 w31 answer",
        f"{start}note : w0 w1 w2 answer",
    ]
    assert [(prompt.label, prompt.truncated) for prompt in encoded.of(examples)] == [(0, False), (1, True), (1, False)]
    lengths = [6 + bos, 8 + bos, 11 + bos]
    assert sorted(len(prompt.tokens) for prompt in encoded.of(examples)) == lengths
    assert encoded.facts["tokens_per_prompt"] == {"median": lengths[1], "p95": lengths[1], "max": lengths[2]}
    assert encoded.facts["truncated_prompts"] == 1
    truncation = encoded.facts["truncation"]
    assert (truncation["max_tokens"], truncation["prompts_cut"]) == (room, 1)
    assert truncation["fields"] == {
        "note": {"examples": 3, "cut": 1, "tokens": 14, "tokens_lost": 5},
        "plan": {"examples": 2, "cut": 0, "tokens": 3, "tokens_lost": 0},
    }


def test_budget_of_a_field_is_kept_and_counted() -> None:
    tokenizer = of_words()
    examples = [Example(1, (("note", text(5)), ("plan", text(5, 20))), 0)]
    encoded = encode(examples, TASK, tokenizer, TokenBudget(100, {"plan": 2}))
    assert words(encoded.of(examples)[0], tokenizer) == "<s> note : w0 w1 w2 w3 w4 plan : w20 w21 answer"
    assert encoded.facts["truncation"]["field_tokens"] == {"plan": 2}
    assert encoded.facts["truncation"]["fields"]["plan"]["tokens_lost"] == 3


def test_prompts_are_found_by_key_in_any_order() -> None:
    tokenizer = of_words()
    examples = [Example(key, (("note", f"w{key}"),), 0) for key in (5, 2, 9)]
    encoded = encode(examples, TASK, tokenizer, TokenBudget(20))
    assert [words(prompt, tokenizer) for prompt in encoded.of([examples[2], examples[0]])] == [
        "<s> note : w9 answer", "<s> note : w5 answer",
    ]  # fmt: skip


def test_room_too_short_for_the_cue_says_what_sets_it() -> None:
    with pytest.raises(InputError, match="too short") as error:
        encode([Example(1, (("note", text(3)),), 0)], TASK, of_words(), TokenBudget(3, where="tiny"))
    assert str(error.value).startswith("tiny: ")


def test_budget_for_no_field_is_refused() -> None:
    with pytest.raises(InputError, match="a budget for no field, 'lab'"):
        encode([Example(1, (("note", text(3)),), 0)], TASK, of_words(), TokenBudget(30, {"lab": 3}))


def test_repr_shows_no_token() -> None:
    encoded = encode([Example(1, (("note", "w7"),), 0)], TASK, of_words(), TokenBudget(30))
    assert "w7" not in repr(encoded)
    assert str(2 + WORDS.index("w7")) not in repr(encoded.of([Example(1, (), 0)]))


# Texts without labels.


def pieces_of(sizes: Sequence[int], room: int, bos: bool = True) -> list[list[Prompt]]:
    examples = [Example(key, (("", text(size, 7 * key)),), None) for key, size in enumerate(sizes)]
    encoded = encode(examples, LANGUAGE, of_words(bos), TokenBudget(room))
    return [encoded.of([example]) for example in examples]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=4), st.integers(3, 20), st.booleans())
def test_pieces_hold_all_tokens_in_order_but_a_lone_last_one(sizes: list[int], room: int, bos: bool) -> None:
    tokenizer = of_words(bos)
    for key, (size, pieces) in enumerate(zip(sizes, pieces_of(sizes, room, bos), strict=True)):
        for prompt in pieces:
            assert len(prompt.tokens) <= room
            assert (prompt.label, prompt.truncated) == (None, False)
            assert not bos or prompt.tokens[0] == tokenizer.bos_token_id
        found = [token for prompt in pieces for token in prompt.tokens[int(bos) :]]
        whole = tokenizer(text(size, 7 * key), add_special_tokens=False)["input_ids"]
        lone = size % (room - bos) == 1
        assert found == (whole[:-1] if lone else whole)


def test_pieces_by_hand() -> None:
    tokenizer = of_words()
    (pieces,) = pieces_of([8], 5)
    assert [words(piece, tokenizer) for piece in pieces] == ["<s> w0 w1 w2 w3", "<s> w4 w5 w6 w7"]
    (pieces,) = pieces_of([9], 5)
    assert len(pieces) == 2  # the ninth has nothing to predict
    (pieces,) = pieces_of([10], 5)
    assert words(pieces[2], tokenizer) == "<s> w8 w9"


def test_facts_of_pieces_count_each_and_cut_none() -> None:
    examples = [Example(0, (("", text(10)),), None), Example(1, (("", text(3)),), None)]
    facts = encode(examples, LANGUAGE, of_words(), TokenBudget(5)).facts
    assert facts == {"tokens_per_prompt": {"median": 5, "p95": 5, "max": 5}, "truncated_prompts": 0}


def test_room_for_no_piece_is_refused() -> None:
    with pytest.raises(InputError, match="pieces of a document"):
        pieces_of([8], 2)


def test_text_of_one_token_has_no_piece_and_breaks_nothing() -> None:
    """A passage of one token has nothing to predict; alone, it is no reason to stop with an internal error."""
    with pytest.raises(InputError):
        pieces_of([1], 5)
