"""A language model on a device: every way to run it gives the same numbers, and it can be taken off again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from device_models import InputError
from hwsim import BitLinear, count_events, emulate, gain_cell_layers, restore, token_latency_s
from tests import tolerances
from tests.hwsim.models import ARCHITECTURES, PERIOD, emulated_model, plain_model, set_scalers, small_device, token_ids

TOKENS = 20  # the ring of 12 wraps
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(scope="module")
def emulated() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def get(architecture: str) -> Any:
        if architecture not in made:
            made[architecture] = emulated_model(architecture)
        return made[architecture]

    return get


# ---- the ways to run; each returns the logits (batch, tokens, vocabulary) of the same sequences


def whole(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def chunked(model: Any, ids: Tensor, size: int, cache: object) -> Tensor:
    parts = [
        model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in ids.split(size, dim=1)
    ]  # fmt: skip
    return torch.cat(parts, dim=1)


def token_by_token(model: Any, ids: Tensor) -> Tensor:
    return chunked(model, ids, 1, hf.DynamicCache(config=model.config))


def chunks_of_seven(model: Any, ids: Tensor) -> Tensor:
    return chunked(model, ids, 7, hf.DynamicCache(config=model.config))


def static_cache(model: Any, ids: Tensor) -> Tensor:
    return chunked(model, ids, 5, hf.StaticCache(config=model.config, max_cache_len=32))


def left_padded(model: Any, ids: Tensor) -> Tensor:
    logits = []
    for row, pad in zip(ids, (3, 9), strict=True):  # beside a longer neighbour, so that geometries differ
        batch = torch.stack([torch.cat([torch.zeros(pad, dtype=torch.long), row]), token_ids(1, pad + len(row), 5)[0]])
        mask = torch.ones_like(batch)
        mask[0, :pad] = 0
        position = (mask.cumsum(1) - 1).clamp(min=0)
        logits.append(
            model(input_ids=batch, attention_mask=mask, position_ids=position, use_cache=False).logits[0, pad:]
        )
    return torch.stack(logits)


def left_padded_token_by_token(model: Any, ids: Tensor) -> Tensor:
    pads, cache = (2, 5), hf.DynamicCache(config=model.config)
    rows = [torch.cat([torch.zeros(p, dtype=torch.long), r, r[: 5 - p]]) for p, r in zip(pads, ids, strict=True)]
    batch = torch.stack(rows)
    mask = torch.ones_like(batch)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    position = (mask.cumsum(1) - 1).clamp(min=0)
    logits = [
        model(
            input_ids=batch[:, a:b], attention_mask=mask[:, :b], position_ids=position[:, a:b], past_key_values=cache
        ).logits
        for a, b in [(0, 8), *((n, n + 1) for n in range(8, batch.shape[1]))]
    ]  # fmt: skip
    together = torch.cat(logits, dim=1)
    return torch.stack([together[row, pad : pad + ids.shape[1]] for row, pad in enumerate(pads)])


def right_padded(model: Any, ids: Tensor) -> Tensor:
    batch = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    batch[1, -4:] = token_ids(1, 4, 3)
    mask = torch.ones_like(batch)
    mask[0, -4:] = 0
    return model(input_ids=batch, attention_mask=mask, use_cache=False).logits[:, : ids.shape[1]]


def own_4d_mask(model: Any, ids: Tensor) -> Tensor:
    tokens = ids.shape[1]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(len(ids), 1, -1, -1)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


WAYS = [
    token_by_token, chunks_of_seven, static_cache, left_padded, left_padded_token_by_token, right_padded
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@every_architecture
@torch.no_grad()
def test_same_logits_however_it_runs(architecture: str, way: Callable[..., Tensor], emulated: Callable) -> None:
    model, ids = emulated(architecture), token_ids(2, TOKENS)
    assert (way(model, ids) - whole(model, ids)).abs().max() <= tolerances.PATHS


@pytest.mark.parametrize("architecture", ["bitnet", "llama", "gpt2"])
@torch.no_grad()
def test_own_4d_mask_without_padding(architecture: str, emulated: Callable) -> None:
    model, ids = emulated(architecture), token_ids(2, TOKENS)
    assert (own_4d_mask(model, ids) - whole(model, ids)).abs().max() <= tolerances.PATHS


@every_architecture
@torch.no_grad()
def test_attention_matters(architecture: str, emulated: Callable) -> None:
    """A token changes later logits, not earlier ones; nothing reaches over the window through two layers."""
    model, ids = emulated(architecture), token_ids(1, 40)
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] - 1) % 38 + 2
    effect = (whole(model, changed) - whole(model, ids)).abs().amax(-1)[0]
    assert effect[:10].max() == 0
    assert (effect[11:22] > tolerances.MATTERS).double().mean() > 0.5
    assert effect[10 + 2 * 11 + 1 :].max() == 0


@every_architecture
@torch.no_grad()
def test_decay_matters(architecture: str) -> None:
    ids = token_ids(1, TOKENS)
    slow, fast = (whole(emulated_model(architecture, token_period=period), ids) for period in (1e-9, 1e-3))
    assert (slow - fast).abs().max() > tolerances.MATTERS


@every_architecture
@torch.no_grad()
def test_restore_gives_the_logits_back_bit_for_bit(architecture: str) -> None:
    model, ids = plain_model(architecture), token_ids(2, TOKENS)
    names, before, kind = set(model.state_dict()), whole(model, ids), model.config._attn_implementation
    emulate(model, small_device(), token_period=PERIOD)
    set_scalers(model)
    assert (whole(model, ids) - before).abs().max() > tolerances.MATTERS
    restore(model)
    assert torch.equal(whole(model, ids), before)
    assert set(model.state_dict()) == names
    assert model.config._attn_implementation == kind
    assert not gain_cell_layers(model)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
@torch.no_grad()
def test_generate_is_greedy_with_full_recomputation(architecture: str, emulated: Callable) -> None:
    model, ids = emulated(architecture), token_ids(1, 9)
    generated = model.generate(ids, max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(ids))
    for _ in range(10):
        ids = torch.cat([ids, whole(model, ids)[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == ids.tolist()
    assert len(set(generated[0, 9:].tolist())) > 1


@torch.no_grad()
def test_generate_of_a_left_padded_batch_is_that_of_each_row(emulated: Callable) -> None:
    model, long, short = emulated("llama"), token_ids(1, 11, 1), token_ids(1, 5, 2)
    alone = [
        model.generate(x, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(x)) for x in (long, short)
    ]
    batch = torch.cat([long, torch.nn.functional.pad(short, (6, 0))])
    mask = torch.ones_like(batch)
    mask[1, :6] = 0
    together = model.generate(batch, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert together[0].tolist() == alone[0][0].tolist()
    assert together[1, 6:].tolist() == alone[1][0].tolist()


# ---- changing and copying


@torch.no_grad()
def test_another_device_keeps_scalers_and_weights() -> None:
    model, ids = emulated_model("llama"), token_ids(1, TOKENS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = whole(model, ids)
    emulate(model, small_device("ideal"))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (whole(model, ids) - first).abs().max() > tolerances.MATTERS
    emulate(model, small_device(), token_period=PERIOD)
    assert torch.equal(whole(model, ids), first)
    plain = whole(plain_model("llama"), ids)
    assert torch.equal(whole(restore(model), ids), plain)


@torch.no_grad()
def test_deepcopy_is_independent() -> None:
    model, ids = emulated_model("gpt2"), token_ids(1, TOKENS)
    before = whole(model, ids)
    twin = copy.deepcopy(model)
    assert torch.equal(whole(twin, ids), before)
    for parameter in twin.parameters():
        parameter.mul_(1.5)
    emulate(twin, small_device("ideal"))
    assert torch.equal(whole(model, ids), before)
    restore(twin)
    assert torch.equal(whole(model, ids), before)


@torch.no_grad()
def test_state_dict_keeps_its_names(tmp_path: Any) -> None:
    plain, model, ids = plain_model("llama"), emulated_model("llama"), token_ids(1, TOKENS)
    added = set(model.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(model.state_dict())
    assert added and all(".gain_cell." in name for name in added)
    model.save_pretrained(tmp_path)
    again = emulate(hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval(), small_device(), token_period=PERIOD)
    missing = again.load_state_dict(model.state_dict())
    assert not missing.missing_keys and not missing.unexpected_keys
    assert torch.equal(whole(again, ids), whole(model, ids))


# ---- what cannot be emulated


def small(model: str, config: str, **settings: object) -> Any:
    return getattr(hf, model)(getattr(hf, config)(vocab_size=40, hidden_size=16, **settings))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: small(
                "BertForMaskedLM", "BertConfig", num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
            ),
            "not causal",
        ),
        (lambda: small("BloomForCausalLM", "BloomConfig", n_layer=1, n_head=2), "cannot be replaced"),
        (lambda: torch.nn.Linear(2, 2), "not a Hugging Face model"),
    ],
    ids=["bert", "bloom", "no-language-model"],
)
def test_unsupported_model_is_an_input_error_and_unchanged(make: Callable[[], Any], said: str) -> None:
    model = make()
    with pytest.raises(InputError, match=said) as caught:
        emulate(model, small_device())
    assert type(model).__name__ in str(caught.value)
    assert not any(isinstance(layer, BitLinear) for layer in model.modules())


@pytest.mark.parametrize(("period", "said"), [(None, "no token period"), (0.0, "> 0 s"), (-1e-6, "-1e-06")])
def test_wrong_token_period_changes_nothing(period: float | None, said: str) -> None:
    model = plain_model("llama")
    with pytest.raises(InputError, match=said):
        emulate(model, small_device(), token_period=period)
    assert not any(isinstance(layer, BitLinear) for layer in model.modules())


def test_attention_without_device_says_what_to_do() -> None:
    model = plain_model("llama")
    model.set_attn_implementation("gain_cell")
    with pytest.raises(ValueError, match=r"without a device: call hwsim\.emulate"):
        model(input_ids=token_ids(1, 4))


def test_dropout_of_attention_is_announced() -> None:
    model = emulated_model("gpt2").train()
    with pytest.warns(UserWarning, match="dropout is not applied"):
        model(input_ids=token_ids(1, 4))


# ---- token period


def test_auto_period_is_the_latency_of_one_token_with_a_full_window() -> None:
    model = emulated_model("llama", token_period="auto")
    device, config = small_device(), model.config
    attention = 5e-9 + 15e-9 + 15e-9 + 15e-9 + 1e-9 * (2 - 1) + (4 // 2 - 1) * 35e-9  # two sub-tiles, two queries share
    linears = 4 * 80e-9  # q k v together, o, gate and up together, down
    head = config.hidden_size * config.vocab_size / 256e9
    expected = 2 * (attention + linears) + head
    assert token_latency_s(model, device) == pytest.approx(expected, rel=1e-9)
    emulate(model, device)
    periods = {cells.token_period_s for cells in gain_cell_layers(model)}
    assert len(periods) == 1 and periods.pop() == pytest.approx(expected, rel=1e-9)


def test_device_without_decay_needs_no_period() -> None:
    model = emulated_model("llama", small_device("ideal"), token_period="auto")
    assert {cells.token_period_s for cells in gain_cell_layers(model)} == {None}


# ---- training


def gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_gradients_nor_counts(reentrant: bool) -> None:
    model, ids = emulated_model("llama").train(), token_ids(2, TOKENS)
    with count_events() as plain:
        expected = gradients(model, ids)
    assert all(
        expected[f"model.layers.0.self_attn.gain_cell.{part}.gain"].abs().max() > 0
        for part in ("query", "key", "value", "output")
    )
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    with count_events() as checkpointed:
        got = gradients(model, ids)
    assert checkpointed.events == plain.events
    assert checkpointed.tokens == plain.tokens == 2 * TOKENS
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


def test_lora_around_an_emulated_model() -> None:
    peft = pytest.importorskip("peft")
    model, ids = emulated_model("llama"), token_ids(1, TOKENS)
    with torch.no_grad(), count_events() as bare:
        before = whole(model, ids)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    ).double()
    with torch.no_grad(), count_events() as with_lora:
        assert (whole(wrapped, ids) - before).abs().max() <= tolerances.PATHS
    lora_macs = 2 * TOKENS * (4 * (32 + 32) + 4 * (32 + 16))
    assert with_lora["digital.mac"] - bare["digital.mac"] == lora_macs
    assert {e: n for e, n in with_lora.events.items() if e != "digital.mac"} == {
        e: n for e, n in bare.events.items() if e != "digital.mac"
    }
    found = gradients(wrapped, ids)
    assert found and all("lora_" in name for name in found)
    assert any(g.abs().max() > 0 for g in found.values())
    emulate(wrapped, small_device("ideal"))
    restore(wrapped)
    assert not gain_cell_layers(wrapped)
    assert sum("lora_" in name for name in wrapped.state_dict()) == 2 * 2 * 2


def test_emulating_a_model_that_already_wears_lora() -> None:
    peft = pytest.importorskip("peft")
    ids = token_ids(1, TOKENS)
    wrapped = (
        peft.get_peft_model(plain_model("llama"), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        .double()
        .eval()
    )
    emulate(wrapped, small_device(), token_period=PERIOD)
    set_scalers(wrapped)
    with torch.no_grad():
        assert (whole(wrapped, ids) - whole(emulated_model("llama"), ids)).abs().max() <= tolerances.PATHS
    assert not any(isinstance(m, BitLinear) for n, m in wrapped.named_modules() if "lora_" in n or "lm_head" in n)
