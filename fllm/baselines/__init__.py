"""What a language model must beat: constant answers, word counts, and linear classifiers of the same texts."""

from fllm.baselines.classification import baselines
from fllm.baselines.federated import ROUNDS as FEDERATED_ROUNDS
from fllm.baselines.language import language_baselines

__all__ = ["FEDERATED_ROUNDS", "baselines", "language_baselines"]
