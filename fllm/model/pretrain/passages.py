"""Short passages for the summary head, in the form in which a text is put to the model for classification.

A passage is a run of words of a training document behind the end token, ``text: `` before it and the cue for a class
behind it; what the passage is about is read off the hidden state at the cue. In half of the passages one to three
words are masked wherever they stand, as findings that name their own diagnosis are in notes: what they say has to be
gathered from the others. The target is that of the whole passage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from device_models import InputError
from fllm.data.corpora import CUE
from fllm.model.pretrain.network import END
from fllm.model.pretrain.recipe import TextRecipe
from fllm.model.pretrain.summaries import latent_semantics
from hwsim.randomness import seed_of

SHORTEST, LONGEST = 20, 100
"""[words] of a passage; the rest of a document may be shorter, down to ``REST``."""
REST = 12
MOST = 50_000
"""Passages at most; from a longer text a sample of so many is drawn."""
MASK = "____"


@dataclass(frozen=True, eq=False)
class Passages:
    """Passages as tokens.

    Attributes:
        tokens: Those of all passages one after another.
        starts: (passages + 1,) place of each one's first token, and of the end.
        summaries: (passages, summary_size) float32.
    """

    tokens: NDArray[np.uint16]
    starts: NDArray[np.int64]
    summaries: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> list[int]:
        found: list[int] = self.tokens[self.starts[index] : self.starts[index + 1]].tolist()
        return found

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each."""
        return np.diff(self.starts)

    def save(self, path: Path) -> None:
        """Write to an ``.npz`` file."""
        np.savez(path, tokens=self.tokens, starts=self.starts, summaries=self.summaries)

    @staticmethod
    def load(path: Path) -> Passages:
        """Read what :meth:`save` wrote."""
        with np.load(path) as found:
            return Passages(found["tokens"], found["starts"], found["summaries"])


def make_passages(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, recipe: TextRecipe) -> Passages:
    """Cut passages out of documents, mask words of half of them, and work out what each is about.

    Raises:
        InputError: If the text is too short, or has too few words that occur twice, for summaries.
    """
    draw = np.random.default_rng(seed_of(recipe.seed, "passages"))
    plain = sample_passages(documents, draw)
    enough = max(recipe.passages, recipe.summary_size)
    try:
        if len(plain) <= enough:
            raise ValueError
        summaries = latent_semantics(plain, recipe)
    except ValueError:  # also of scikit-learn, for lack of words
        raise InputError(
            "the corpus is too short to learn summaries from", received=f"{len(plain)} passages",
            expected=f"more than {enough}, of words that occur twice", remedy="add text, or build with --no-summary",
        ) from None  # fmt: skip
    before, behind = ([tokenizer.convert_tokens_to_ids(END)], tokenizer(f"\n{CUE}")["input_ids"])
    room = recipe.context - len(before) - len(behind)
    rows = []
    for text in plain:
        ids = tokenizer(f"text: {masked(text, draw)}")["input_ids"]
        rows.append([*before, *ids[:room], *behind])
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Passages(np.array([i for row in rows for i in row], dtype=np.uint16), starts, summaries.numpy())


def sample_passages(documents: Iterable[str], draw: np.random.Generator, most: int = MOST) -> list[str]:
    """Return passages of documents; of more than ``most``, each has the same chance (reservoir sampling)."""
    found: list[str] = []
    seen = 0
    for document in documents:
        words, start = document.split(), 0
        while len(words) - start >= REST:
            length = int(draw.integers(SHORTEST, LONGEST + 1))
            text = " ".join(words[start : start + length])
            place = seen if seen < most else int(draw.integers(seen + 1))
            if place == len(found) < most:
                found.append(text)
            elif place < most:
                found[place] = text
            seen, start = seen + 1, start + length
    return found


def masked(text: str, draw: np.random.Generator) -> str:
    """Mask up to three of the words of four or more characters, wherever they stand; half of the texts stay whole."""
    count = int(draw.integers(1, 4)) if draw.random() < 0.5 else 0
    words = text.split(" ")
    kinds = sorted({_bare(word) for word in words if len(_bare(word)) >= 4})
    chosen = {kinds[i] for i in draw.permutation(len(kinds))[:count]}
    return " ".join(word.lower().replace(_bare(word), MASK) if _bare(word) in chosen else word for word in words)


def _bare(word: str) -> str:
    return word.lower().strip(".,;:!?()[]\"'")
