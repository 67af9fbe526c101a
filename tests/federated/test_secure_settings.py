"""Which settings go with secure aggregation."""

from __future__ import annotations

from typing import Any

import pytest

from device_models import InputError
from fllm.config import RunConfig, validate_config
from fllm.local_clients import terms_of
from fllm.sections import AVERAGING


def refusal(**settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        validate_config(settings, "here")
    return str(caught.value)


@pytest.mark.parametrize("kind", ["fedmedian", "trimmed_mean", "krum", "multikrum"])
def test_strategies_that_need_single_updates_are_refused(kind: str) -> None:
    message = refusal(num_clients=8, strategy={"kind": kind}, secure={"aggregation": True})
    assert f"not enough for strategy.kind {kind}" in message and "take fedavg, fedprox" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": {"factors": "svd"}}, "with factors svd"),
        ({"strategy": {"factors": "share_a"}}, "with factors share_a"),
        ({"privacy": {"kind": "client", "target_delta": 1e-5}}, "cuts single updates at the server"),
        ({"wire": "int8"}, "wire: int8 has no effect"),
        ({"secure": {"aggregation": True, "threshold": 2}}, "a threshold of 2 of 4 clients: expected more than half"),
        ({"secure": {"aggregation": True, "threshold": 5}}, "a threshold of 5 is more than the 4 clients"),
        ({"num_clients": 1}, "more than the 1 clients"),
        ({"clients_per_round": 1}, "more than the 1 clients"),
        ({"secure": {"threshold": 3}}, "threshold has no effect without aggregation"),
    ],
)
def test_settings_that_do_not_go_with_secure_aggregation_are_refused(settings: dict[str, Any], message: str) -> None:
    assert message in refusal(**{"secure": {"aggregation": True}} | settings)


def test_settings_that_go_with_secure_aggregation() -> None:
    for kind in AVERAGING:
        config = RunConfig(strategy={"kind": kind}, lora={"freeze_a": True}, secure={"aggregation": True})
        assert terms_of(config).secure_threshold == 3
    assert terms_of(RunConfig()).secure_threshold is None
    config = RunConfig(num_clients=20, clients_per_round=5, secure={"aggregation": True, "threshold": 3})
    assert terms_of(config).secure_threshold == 3
