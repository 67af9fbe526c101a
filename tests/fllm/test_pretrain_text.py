"""Text on its way to a base model: documents, what is held out, tokens, passages."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_models import InputError
from fllm.data.budget import TokenBudget
from fllm.data.corpora import read_table
from fllm.model.pretrain.documents import Documents, Split, checked
from fllm.model.pretrain.passages import MASK, make_passages, masked, sample_passages
from fllm.model.pretrain.tokens import TokenCorpus, is_tokenised, load_tokens, tokenise
from fllm.prompting import encode
from tests.fllm.made_up_text import SMALL, documents

LETTERS = "abcdefghijkl"
"""No words to a vectoriser of texts."""


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def tokenised(folder: Path, texts: list[str], **changes: float) -> TokenCorpus:
    recipe = replace(SMALL, **changes)
    split = Split(Documents((write(folder / "corpus.txt", texts),)), None, recipe.held_out, 0)
    tokenise(split, recipe, folder, lambda _: None)
    return load_tokens(folder)


# ---- documents


def test_plain_text_is_parted_at_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\n\none\r\ntwo\r\n \t\r\n\r\nthree\n\n\n")
    assert list(Documents((file,))) == ["one\ntwo", "three"]


def test_tables_and_gzip(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt.gz", tmp_path / "b.jsonl.gz"
    plain.write_bytes(gzip.compress(b"one\n\ntwo"))
    rows = [{"body": "a\n\nb", "id": 1}, {"body": "", "id": 2}, {"body": "c", "id": 3}]
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert list(Documents((plain, packed), "body")) == ["one", "two", "a\n\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "does not exist"),
        ("a.txt", b" \n", "empty"),
        ("a.txt", b"\xff\xfe", "no UTF-8"),
        ("a.jsonl", b'{"other": 1}\n', "column 'text' missing"),
        ("a.pdf", b"x", "unknown kind of text file"),
    ],
)
def test_files_that_cannot_serve(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        checked([tmp_path / name], "text")


def test_held_out_by_text_not_by_place(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(2000)]
    first = Split(Documents((write(tmp_path / "a.txt", texts),)), None, 0.1, seed=0)
    held_out = list(first.held_out())
    assert 150 < len(held_out) < 250  # 200 expected, standard deviation 13
    assert sorted([*first.training(), *held_out]) == sorted(texts)
    second = Split(Documents((write(tmp_path / "b.txt", [*texts[::-1], *texts[:500]]),)), None, 0.1, seed=0)
    assert set(second.held_out()) == set(held_out)
    assert not set(second.training()) & set(held_out)
    other = Split(first.corpus, None, 0.1, seed=1)
    assert set(other.held_out()) != set(held_out)


def test_validation_file_leaves_the_corpus_whole(tmp_path: Path) -> None:
    corpus, validation = write(tmp_path / "a.txt", documents(30)), write(tmp_path / "b.txt", ["kept apart"])
    split = Split(Documents((corpus,)), Documents((validation,)), 0.5, 0)
    assert len(list(split.training())) == 30
    assert list(split.held_out()) == ["kept apart"]


# ---- tokens


def test_stream_is_every_document_between_end_tokens(tmp_path: Path) -> None:
    texts = documents(300)
    found = tokenised(tmp_path, texts)
    end = found.tokenizer.eos_token_id
    split = Split(Documents((tmp_path / "corpus.txt",)), None, SMALL.held_out, 0)
    for stream, own in ((found.train, split.training()), (found.held_out, split.held_out())):
        assert stream[0] == stream[-1] == end
        parts = found.tokenizer.decode(stream).split(found.tokenizer.eos_token)
        assert parts == ["", *own, ""]
    facts = found.facts
    assert facts.tokens == len(found.train) and facts.held_out_tokens == len(found.held_out)
    assert facts.documents + facts.held_out_documents == 300
    assert facts.held_out_bytes == sum(len(text) for text in split.held_out())
    assert isinstance(found.train, np.memmap)
    assert is_tokenised(tmp_path)


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (["too short", "to train on"], {}, "shorter than one batch; expected 97 tokens or more"),
        (["kidney1 heart2 " * 200], {"held_out": 1e-9}, "no document is held out"),
        (documents(40), {"summary_size": 200}, "too short to learn summaries from; expected more than 200"),
        ([" ".join(LETTERS[j % 12] for j in range(48 + i)) for i in range(40)], {}, "too short to learn summaries"),
    ],
    ids=["corpus", "held out", "summaries", "words"],
)
def test_too_little_text(tmp_path: Path, texts: list[str], changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenised(tmp_path, texts, **{"held_out": 0.3, **changes})
    assert not is_tokenised(tmp_path)


# ---- passages


def test_passages_cover_documents_and_keep_their_lengths() -> None:
    text = " ".join(f"w{i}" for i in range(1000))
    found = sample_passages([text, "too short"], np.random.default_rng(0))
    lengths = [len(passage.split()) for passage in found]
    joined = " ".join(found).split()
    assert joined == text.split()[: len(joined)] and len(joined) > 1000 - 12
    assert all(20 <= length <= 100 for length in lengths[:-1])


def test_sample_of_passages_is_fair() -> None:
    text = [" ".join([f"d{i}"] * 20) for i in range(40)]
    counts = Counter(
        passage.split()[0]
        for seed in range(300)
        for passage in sample_passages(text, np.random.default_rng(seed), most=10)
    )
    assert sum(counts.values()) == 3000
    deviations = [(counts[f"d{i}"] - 75) / math.sqrt(300 * 0.25 * 0.75) for i in range(40)]
    assert max(map(abs, deviations)) < 4


def test_masks_hide_a_word_wherever_it_stands() -> None:
    text = "Asthma narrows airways; asthma, (Asthma) and the"
    shown = {masked(text, np.random.default_rng(seed)) for seed in range(50)}
    assert text in shown
    assert f"{MASK} narrows airways; {MASK}, ({MASK}) and the" in shown
    assert all("and the" in each for each in shown)  # too short to be masked


def test_passages_read_as_prompts_of_a_table_do(tmp_path: Path) -> None:
    """The summary is read off where an adapter will later need it."""
    texts = documents(60)
    corpus = tokenised(tmp_path, texts, context=256)
    recipe = replace(SMALL, context=256)
    found = make_passages(texts, corpus.tokenizer, recipe)
    whole = sample_passages(texts, np.random.default_rng(0))
    rows = ["text,label", *(f"{text},{'ab'[i % 2]}" for i, text in enumerate(whole[:20]))]
    (tmp_path / "table.csv").write_text("\n".join(rows), encoding="utf-8")
    table = read_table(tmp_path / "table.csv")
    prompts = encode(table.examples, table.task, corpus.tokenizer, TokenBudget(256))
    start, behind = prompts.of(table.examples[:1])[0].tokens[:4], prompts.of(table.examples[:1])[0].tokens[-4:]
    for index in range(len(found)):
        assert found[index][0] == start[0] and tuple(found[index][-4:]) == behind
        assert found[index][1] == start[1]
    assert found.summaries.shape == (len(found), SMALL.summary_size)
    np.testing.assert_allclose(found.summaries.std(axis=0), 1.0, rtol=1e-3)


def test_long_passages_are_cut_to_the_context(tmp_path: Path) -> None:
    corpus = tokenised(tmp_path, documents(60))
    assert corpus.passages is not None
    assert corpus.passages.lengths.max() == SMALL.context
    cue = corpus.tokenizer("\nlabel:")["input_ids"]
    assert all(corpus.passages[i][-len(cue) :] == cue for i in range(len(corpus.passages)))
