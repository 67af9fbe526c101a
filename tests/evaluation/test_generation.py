"""Written answers: greedy, the same in every batch, on the ideal device as without a cache; and when they end."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from device_models import DeviceModel, load_device
from fllm.data import DIAGNOSES, build_note, load_synthetic
from fllm.evaluation import Prompt, generate_answers, generation_facts
from fllm.model.base import LoadedModel, load_model
from hwsim import Die, emulate
from hwsim.integrations.transformers import _NOISE
from tests.fllm.small import CANARY

PERIOD_S = 1e-5
NEW = 6


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(None, load_device("gaincell_28nm"), PERIOD_S, [])


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> list[Prompt]:
    """Notes of all lengths; some end in the middle of a sentence, where a model goes on for long."""
    cases = load_synthetic(40, n_hospitals=4, seed=3).cases[:10]
    notes = [build_note(case, ("labs", "imaging")) for case in cases]
    rows = [loaded.tokenizer(note, add_special_tokens=False)["input_ids"] for note in notes]
    rows = [row if index % 2 else row[: len(row) // 2] for index, row in enumerate(rows)]
    return [Prompt(tuple(row), 0, False) for row in rows]


def written(loaded: LoadedModel, prompts: list[Prompt], batch_size: int, **settings: Any) -> list[str]:
    return generate_answers(
        loaded.model, loaded.tokenizer, prompts, batch_size, loaded.tokenizer.pad_token_id or 0,
        max_new_tokens=NEW, **settings,
    )  # fmt: skip


def on(loaded: LoadedModel, device: DeviceModel, die: int | None) -> LoadedModel:
    emulate(loaded.model, device, die_seed=None if die is None else Die(die, device), token_period=PERIOD_S)
    return loaded


@torch.no_grad()
def greedy(loaded: LoadedModel, prompt: Prompt) -> str:
    """Read everything anew for each token: no cache, no batch, no padding."""
    tokens = torch.tensor([prompt.tokens])
    for _ in range(NEW):
        logits = loaded.model(input_ids=tokens, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
        if tokens[0, -1] == loaded.tokenizer.eos_token_id:
            break
    text = loaded.tokenizer.decode(tokens[0, len(prompt.tokens) :], skip_special_tokens=True)
    return next(iter(text.strip().splitlines()), "").strip()


def test_ideal_device_writes_what_greedy_decoding_writes(loaded: LoadedModel, prompts: list[Prompt]) -> None:
    on(loaded, load_device("ideal"), None)
    found = written(loaded, prompts, 4)
    assert found == [greedy(loaded, prompt) for prompt in prompts]
    assert len(set(found)) > 3 and any(text in DIAGNOSES for text in found)


def test_neither_batch_size_nor_order_matters_on_hardware(loaded: LoadedModel, prompts: list[Prompt]) -> None:
    """In float64: in float32 the order of a sum may move one code of an activation, and several of the converters'."""
    on(loaded, load_device("gaincell_28nm"), 1)
    loaded.model.double()
    try:
        found = written(loaded, prompts, 10, noise_seed=5)
        assert written(loaded, prompts, 1, noise_seed=5) == found
        assert written(loaded, prompts, 3, noise_seed=5) == found
    finally:
        loaded.model.float()


def test_noise_of_an_answer_is_that_of_its_prompt(loaded: LoadedModel, prompts: list[Prompt]) -> None:
    """Loud enough to change words: another key writes otherwise, the same key the same, whatever shares the batch."""
    on(loaded, load_device("gaincell_28nm", {"noise.flicker": 0.3}), 1)
    found = written(loaded, prompts[:4], 4, noise_seed=1)
    assert found == written(loaded, prompts[:4], 2, noise_seed=1)
    assert found != written(loaded, prompts[:4], 4, noise_seed=2)
    same = [prompts[0]] * 4
    assert len(set(written(loaded, same, 4, noise_seed=1))) > 1


# ---- when an answer ends


class Cache:
    """Remembers which rows are left."""

    def __init__(self, rows: int) -> None:
        self.rows = list(range(rows))

    def batch_select_indices(self, kept: Tensor) -> None:
        self.rows = [self.rows[place] for place in kept.tolist()]


class Successor(nn.Module):
    """Each token is followed by the next number; remembers what it was given."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=limit)
        self.steps: list[dict[str, Any]] = []

    def forward(self, past_key_values: Cache | None, **given: Any) -> SimpleNamespace:
        tokens = given["input_ids"]
        cache = Cache(len(tokens)) if past_key_values is None else past_key_values
        self.steps.append(given | {"rows": list(cache.rows), "training": self.training, "keys": _NOISE.get().tolist()})
        logits = torch.nn.functional.one_hot((tokens[:, -1:] + 1) % 100, 100).float()
        return SimpleNamespace(logits=logits, past_key_values=cache)


class Numbers:
    """Writes numbers as words; 50 is the end, 60 and 61 are line breaks."""

    eos_token_id = 50

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join({50: "", 60: "\n", 61: "\n"}.get(token, f" {token}") for token in tokens)


def continued(model: Successor, *last: int, length: int = 1, most: int = 5, batch: int = 9) -> list[str]:
    rows = [Prompt((7,) * (length - 1 + index) + (token,), 0, False) for index, token in enumerate(last)]
    return generate_answers(model, Numbers(), rows, batch, 0, max_new_tokens=most)  # type: ignore[arg-type]


def test_answer_ends_at_the_most_tokens_at_the_end_or_at_a_line() -> None:
    assert continued(Successor(), 10, 47, 57, 59) == ["11 12 13 14 15", "48 49", "58 59", "62 63 64"]


def test_answer_ends_where_the_model_has_no_room() -> None:
    model = Successor(limit=4)
    assert continued(model, 10, 20, length=2) == ["11 12", "21"]
    assert max(int(step["position_ids"].max()) for step in model.steps) < 4
    full = Successor(limit=4)
    assert continued(full, 10, 20, length=4) == ["", ""]
    assert not full.steps
    assert continued(Successor(limit=5), 10, 20, length=4) == ["11", ""]


def test_complete_answers_leave_the_batch() -> None:
    """And the others keep their own cache, noise, positions and padding."""
    model = Successor()
    continued(model, 48, 10, 57, 20)
    assert [step["rows"] for step in model.steps] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3], [1, 3], [1, 3]]
    keys = model.steps[0]["keys"]
    assert len(set(keys)) == 4
    for number, step in enumerate(model.steps):
        assert step["keys"] == [keys[row] for row in step["rows"]]
        assert step["position_ids"][:, -1].tolist() == [row + number for row in step["rows"]]
        assert step["attention_mask"].sum(dim=1).tolist() == [row + 1 + number for row in step["rows"]]
        assert step["attention_mask"].shape[1] == 4 + number


def test_prompts_are_padded_on_the_left_and_positions_count_real_tokens() -> None:
    model = Successor()
    continued(model, 10, 20, most=2)
    first, second = model.steps
    assert first["attention_mask"].tolist() == [[0, 1], [1, 1]]
    assert first["input_ids"].tolist() == [[0, 10], [7, 20]]
    assert first["position_ids"].tolist() == [[0, 0], [0, 1]]
    assert second["position_ids"].tolist() == [[1], [2]]
    assert second["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("training", [True, False])
def test_model_writes_in_evaluation_mode_and_is_put_back(training: bool) -> None:
    model = Successor()
    model.train(training)
    continued(model, 10)
    assert not any(step["training"] for step in model.steps)
    assert model.training is training


def test_batches_keep_the_order_of_the_prompts() -> None:
    assert continued(Successor(), 10, 20, 30, most=1, batch=2) == ["11", "21", "31"]


# ---- what a result says of them


TEXTS = [
    "appendicitis", "acute biliary colic", "cholecystitis vs pancreatitis", "no appendicitis", f"{CANARY} {CANARY}",
    "diverticulitis",
]  # fmt: skip
TRUTH = [0, 1, 3, 0, 2, 2]


def test_facts_of_written_answers_by_hand() -> None:
    assert DIAGNOSES == ("appendicitis", "cholecystitis", "diverticulitis", "pancreatitis")
    found = generation_facts(TEXTS, TRUTH, DIAGNOSES, seed=1, kind="diagnosis")
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["accuracy_strict"] == pytest.approx(2 / 6)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3 + 0) / 4)
    assert (found["unparsable"], found["unparsable_count"], found["ambiguous_count"]) == (2 / 6, 2, 1)
    assert [found["recall"][name]["value"] for name in DIAGNOSES] == [0.5, 1.0, 0.5, 0.0]
    assert [found["recall"][name]["cases"] for name in DIAGNOSES] == [2, 1, 2, 1]
    low, high = found["interval_95"]["accuracy"]
    assert 0 <= low < 0.5 < high <= 1
    assert found == generation_facts(TEXTS, np.array(TRUTH), DIAGNOSES, seed=1, kind="diagnosis")


def test_facts_hold_no_text() -> None:
    assert CANARY not in json.dumps(generation_facts(TEXTS, TRUTH, DIAGNOSES, seed=1, kind="diagnosis"))


def test_other_tasks_are_read_by_the_names_of_their_classes() -> None:
    found = generation_facts(["Yes", "no idea", "yes, not maybe"], [0, 1, 1], ("yes", "maybe"), seed=0, kind="other")
    assert (found["accuracy"], found["accuracy_strict"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found["unparsable_count"] == 1 and found["ambiguous_count"] == 0
