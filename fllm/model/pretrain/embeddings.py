"""First embeddings from counts: tokens that stand in the same places begin close to each other.

Random embeddings spend the first hundreds of steps on what a table of counts knows. The counts of tokens in short
pieces of the text are weighted as for latent semantics and factorised; the factors of the tokens, all of one length,
take the place of the random vectors. On 0.55 million tokens this saved 0.5 nat per token (docs/pretraining.md).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fllm.model.pretrain.recipe import TextRecipe
from fllm.model.pretrain.tokens import Stream
from hwsim.randomness import seed_of

PIECE, MOST = 64, 100_000
"""Tokens of a piece, and pieces that are counted at most, from the first on."""
SEEN = 5
"""A token in fewer pieces keeps its random vector."""


@torch.no_grad()
def embed_by_counts(embeddings: nn.Embedding, stream: Stream, recipe: TextRecipe) -> int:
    """Set the embeddings of the tokens that a stream holds often enough; return how many.

    The length of each is what a random vector has on average, so nothing else of the model changes its scale. A stream
    too short for as many factors as the embeddings have dimensions changes nothing.
    """
    vocabulary, size = embeddings.weight.shape
    if len(stream) // PIECE <= size:
        return 0
    vectors, pieces = token_vectors(stream, vocabulary, size, seed_of(recipe.seed, "token vectors") % 2**31)
    lengths = vectors.norm(dim=1)
    known = (pieces >= SEEN) & (lengths > 1e-6)
    usual = embeddings.weight.norm(dim=1).mean()
    embeddings.weight[known] = (vectors[known] / lengths[known, None]).to(usual.device) * usual
    return int(known.sum())


def token_vectors(stream: Stream, vocabulary: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    r"""Factorise the counts of tokens in pieces of a stream.

    With :math:`c_{pt}` the count of token t in piece p, :math:`n_t` the number of pieces that hold it, and rows of
    :math:`X` brought to length 1,

    .. math:: X_{pt} = (1 + \ln c_{pt}) \ln(P / n_t), \qquad X \approx U S V^T, \qquad v_t = V_t S^{1/2}.

    Returns:
        The vectors (vocabulary, size), and the number of pieces that hold each token.
    """
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    count = min(len(stream) // PIECE, MOST)
    tokens = stream[: count * PIECE].astype(np.int64)
    place = np.repeat(np.arange(count), PIECE)
    counts = csr_matrix((np.ones(len(tokens), np.float32), (place, tokens)), shape=(count, vocabulary))
    counts.sum_duplicates()
    pieces = np.bincount(counts.indices, minlength=vocabulary)
    counts.data = (1 + np.log(counts.data)) * np.log(count / pieces[counts.indices]).astype(np.float32)
    found = TruncatedSVD(size, random_state=seed).fit(normalize(counts))
    vectors = (found.components_ * np.sqrt(found.singular_values_)[:, None]).T
    return torch.from_numpy(np.ascontiguousarray(vectors)).float(), torch.from_numpy(pieces)
