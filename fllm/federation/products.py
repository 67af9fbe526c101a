"""The products B A of a round's replies: their best average of a rank, and what another average loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor

from fllm.federation.client_app import WEIGHT_KEY
from fllm.federation.factors import A, B, Factors, average_error, best_average, factors_of


@dataclass(frozen=True, eq=False)
class Products:
    """Factors of all clients, layer by layer, and their weights.

    Attributes:
        updates: Of each client.
        weights: Of the clients.
        frozen: Tensors that are not sent.
    """

    updates: Sequence[Mapping[str, Factors]]
    weights: Sequence[float]
    frozen: Mapping[str, Tensor]

    @staticmethod
    def of(replies: Sequence[Message], frozen: Mapping[str, Tensor]) -> Products:
        """Read them from the replies of a round."""
        updates, weights = [], []
        for reply in replies:
            updates.append(factors_of(next(iter(reply.content.array_records.values())).to_torch_state_dict(), frozen))
            weights.append(float(next(iter(reply.content.metric_records.values()))[WEIGHT_KEY]))
        return Products(updates, weights, frozen)

    def best(self, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return A and B of each layer, of the rank of the first client, whose product is closest to the average.

        Args:
            sent: What the clients were sent. Where nobody had a row of A, as all are of smaller ranks, its own stays.
        """
        found: dict[str, Tensor] = {}
        for name, (b, _) in self.updates[0].items():
            factors = best_average([update[name] for update in self.updates], self.weights, b.shape[1])
            found[name.replace(A, B)], a = (factor.float() for factor in factors)
            found[name] = torch.where((a == 0).all(1, keepdim=True), sent[name], a)
        return found

    def error_of(self, adapter: Mapping[str, Tensor] | None) -> float:
        """Return the relative distance from the average of the products; None is the means of A and of B."""
        total = sum(self.weights)
        if adapter is not None:
            return average_error(self.updates, self.weights, factors_of(adapter, self.frozen))
        means: dict[str, Factors] = {}
        for name in self.updates[0]:
            pairs = [update[name] for update in self.updates]
            b, a = (
                sum(w / total * pair[i].double() for w, pair in zip(self.weights, pairs, strict=True)) for i in (0, 1)
            )
            assert isinstance(b, Tensor) and isinstance(a, Tensor)
            means[name] = (b, a)
        return average_error(self.updates, self.weights, means)
