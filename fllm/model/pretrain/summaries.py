"""What a text is about, as a vector of numbers that no label enters: the targets of the summary head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fllm.model.pretrain.recipe import Recipe
from hwsim.randomness import seed_of

SECTION_SIZE = 150
"""Most dimensions that the words of one section are reduced to."""


def latent_semantics(texts: Sequence[str], recipe: Recipe) -> Tensor:
    """Return (texts, summary_size) vectors of the texts' words and word pairs, each dimension of unit variance.

    Source: Deerwester et al., Indexing by latent semantic analysis, JASIS 41, 391 (1990).
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_df=0.5),
        TruncatedSVD(recipe.summary_size, random_state=seed_of(recipe.seed, "summaries") % 2**31),
        StandardScaler(),
    ).fit_transform(texts)
    return torch.from_numpy(made).float()


def common_semantics(sections: Sequence[Sequence[str]], shown: NDArray[np.bool_], recipe: Recipe) -> Tensor:
    """Return (notes, summary_size) vectors of what the sections of a note say alike, summed over those it shows.

    Words and word pairs of each section become uncorrelated dimensions of unit variance. Principal components of all
    sections side by side are then the directions in which sections agree, however rare their words.

    Source: Kettenring, Canonical analysis of several sets of variables, Biometrika 58, 433 (1971), MAXVAR.

    Args:
        sections: Texts of each section, for all notes.
        shown: (notes, sections) whether the note shows it.
        recipe: Size and seed.

    Returns:
        The vectors; each dimension would be of unit variance if all sections were shown.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # how sums are cut among threads would decide their last bits
        return _common(sections, shown, recipe)


def _common(sections: Sequence[Sequence[str]], shown: NDArray[np.bool_], recipe: Recipe) -> Tensor:
    from sklearn.decomposition import PCA

    views = [_uncorrelated(texts, seed_of(recipe.seed, "summaries", i) % 2**31) for i, texts in enumerate(sections)]
    axes = PCA(recipe.summary_size, svd_solver="covariance_eigh").fit(np.hstack(views)).components_
    ends = np.cumsum([view.shape[1] for view in views])[:-1]
    parts = [view @ axis.T for view, axis in zip(views, np.split(axes, ends, axis=1), strict=True)]
    told = sum(part * seen[:, None] for part, seen in zip(parts, shown.T, strict=True))
    return torch.from_numpy(told / sum(parts).std(axis=0)).float()


def _uncorrelated(texts: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Return (texts, at most 150) uncorrelated dimensions of unit variance of the texts' words and word pairs."""
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit_transform(texts)
    # The last dimensions of a short vocabulary say next to nothing, which unit variance would blow up
    size = min(SECTION_SIZE, min(words.shape) // 2)
    reduced = TruncatedSVD(size, random_state=seed).fit_transform(words)
    return PCA(whiten=True, svd_solver="covariance_eigh").fit_transform(reduced)
