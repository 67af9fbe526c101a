"""A corpus as tokens, made once and kept on disk while a model is trained; read back memory-mapped.

Documents are joined by the end token: ``end, document, end, document, ..., end``. Pieces are cut from this stream
wherever they fall, so attention crosses the end token into the document before; the token tells the model that what
follows is another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from device_models import InputError
from fllm.model.pretrain.documents import Split
from fllm.model.pretrain.network import END, train_tokenizer
from fllm.model.pretrain.passages import Passages, make_passages
from fllm.model.pretrain.recipe import TextRecipe
from fllm.results import replace_file

TOKENIZER_BYTES = 100_000_000
"""[bytes] of training text that a tokenizer is trained on at most, from the first on."""
_BATCH = 256
Stream = NDArray[np.uint16]


@dataclass(frozen=True)
class CorpusFacts:
    """What a corpus came to; no text.

    Attributes:
        corpus_sha256: Digest over the bytes of its files.
        tokens: Tokens of the training stream, end tokens included.
        held_out_bytes: UTF-8 bytes of the held-out documents, without what parts them.
    """

    corpus_sha256: str
    validation_sha256: str | None
    documents: int
    tokens: int
    held_out_documents: int
    held_out_bytes: int
    held_out_tokens: int
    passages: int


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Everything a model is trained and scored on."""

    tokenizer: PreTrainedTokenizerFast
    train: Stream
    held_out: Stream
    passages: Passages | None
    facts: CorpusFacts


def tokenise(split: Split, recipe: TextRecipe, folder: Path, on_stage: Callable[[str], None]) -> None:
    """Train the tokenizer and write tokens, passages and facts to a folder; the facts last.

    Raises:
        InputError: If a file cannot be read, or there is too little text to train on or to score.
    """
    digests = [None if files is None else files.sha256() for files in (split.corpus, split.validation)]
    on_stage("training the tokenizer")
    tokenizer = train_tokenizer(_first_bytes(split.training(), TOKENIZER_BYTES), recipe)
    tokenizer.save_pretrained(folder)
    on_stage("writing tokens")
    documents, _, tokens = _write(split.training(), tokenizer, folder / "train.u16")
    held_out, held_out_bytes, held_out_tokens = _write(split.held_out(), tokenizer, folder / "held_out.u16")
    needed = (recipe.sequences + 1) * recipe.context + 1
    if tokens < needed:
        raise InputError(
            "the corpus is shorter than one batch", expected=f"{needed:,} tokens or more", received=tokens,
            remedy="add text, or take a smaller --size",
        )  # fmt: skip
    if not held_out:
        remedy = "name a --validation file" if split.validation is None else None
        raise InputError("no document is held out", received=f"{documents} documents", remedy=remedy)
    number = 0
    if recipe.passages:
        on_stage("summing up passages")
        passages = make_passages(split.training(), tokenizer, recipe)
        passages.save(folder / "passages.npz")
        number = len(passages)
    assert digests[0] is not None
    facts = CorpusFacts(
        digests[0], digests[1], documents, tokens, held_out, held_out_bytes, held_out_tokens, number
    )  # fmt: skip
    replace_file(folder / "corpus.json", json.dumps(asdict(facts), indent=2) + "\n")


def is_tokenised(folder: Path) -> bool:
    """Say whether :func:`tokenise` has finished here."""
    return (folder / "corpus.json").exists()


def load_tokens(folder: Path) -> TokenCorpus:
    """Open what :func:`tokenise` wrote."""
    facts = CorpusFacts(**json.loads((folder / "corpus.json").read_text(encoding="utf-8")))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    train, held_out = (np.memmap(folder / name, dtype=np.uint16, mode="r") for name in ("train.u16", "held_out.u16"))
    passages = Passages.load(folder / "passages.npz") if facts.passages else None
    return TokenCorpus(tokenizer, train, held_out, passages, facts)


def _first_bytes(texts: Iterable[str], most: int) -> Iterator[str]:
    for text in texts:
        yield text
        most -= len(text.encode())
        if most <= 0:
            return


def _write(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, path: Path) -> tuple[int, int, int]:
    """Write the stream of some documents; return the number of documents, of their bytes and of tokens."""
    end = tokenizer.convert_tokens_to_ids(END)
    documents = size = tokens = 0
    with path.open("wb") as file:
        while batch := list(islice(texts, _BATCH)):
            rows = tokenizer(batch, add_special_tokens=False)["input_ids"]
            stream = np.array([token for row in rows for token in (end, *row)], dtype=np.uint16)
            file.write(stream.tobytes())
            documents, tokens = documents + len(batch), tokens + len(stream)
            size += sum(len(text.encode()) for text in batch)
        file.write(np.array([end], dtype=np.uint16).tobytes())
    return documents, size, tokens + 1
