"""Run the attention of any Hugging Face causal language model on emulated gain cells, and take it off again.

transformers asks two registered functions: one builds the mask, one computes attention. Ours builds no mask but a
*code*, one int32 tensor (b, 1, 1 + queries, keys): row 0 is the write index of each key (how many tokens were
written before it, -1 for padding), row 1 + i the age of each key at query i in tokens, -1 where it must not be read.
From it follow ring slot, decay, causality, window and padding, whatever cache the keys come from. Consecutive tokens,
the last of which are the queries, need no more than row 0.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function, sdpa_mask
from transformers.pytorch_utils import Conv1D

from device_models import DeviceModel, InputError
from hwsim.costing import price
from hwsim.counting import count_events, decoders, record_attention, record_tokens, watch
from hwsim.die import Die
from hwsim.effects import warn_of_idle_effects
from hwsim.functional.layout import Stretch, slot_layout, stretch_layout
from hwsim.functional.reads import Place, sequence_keys
from hwsim.functional.tables import AttentionTables
from hwsim.integrations.ring_cache import layer_of
from hwsim.linear import BitLinear, OnArrays, TokenPlaces
from hwsim.modules import GainCellAttention, gain_cell_layers
from hwsim.randomness import keyed
from hwsim.shapes import rotary_share

NAME = "gain_cell"
_TABLES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Tables of the forward passes in flight, by their code tensor: shared by all layers, gone with the tensor."""
_WATCHES = "_hooks_of_counting"
_PLACES = "_places_of_tokens"
_PLACE_HOOKS = "_hooks_of_places"
_UNSET = object()
_NOISE: ContextVar[Any] = ContextVar("hwsim_noise_key", default=_UNSET)


@contextmanager
def noise_key(key: int | Tensor | None) -> Iterator[None]:
    """Draw everything random at writes and reads, in all forward passes inside the block, from this key.

    One block is one life of the stored tokens: keep it open over all steps of a generation, and open a new one with a
    new key for each step of a training.

    Args:
        key: A number, shared by all sequences of a batch; or (batch,) int64, the key of each sequence; None switches
            it off. Either way a sequence's noise does not depend on the batch that it is in.
    """
    token = _NOISE.set(key)
    try:
        yield
    finally:
        _NOISE.reset(token)


def gain_cell_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: object,
) -> Tensor:
    """Build the code tensor of one forward pass; the signature is that of a mask function of transformers."""
    rows = torch.arange(q_length, device=device) + q_offset
    keys = torch.arange(kv_length, device=device) + kv_offset
    real = None if attention_mask is None else attention_mask.to(device).bool()
    if real is None or bool(real.all()):
        if real is not None and real.shape[1] >= kv_offset + kv_length:
            attention_mask = None
        query_index, key_index = rows[None], keys[None]
        valid = torch.ones(batch_size, q_length, dtype=torch.bool, device=device)
    else:
        index = _write_indices(real)
        valid = _at(index, rows) >= 0
        if bool((real[:, 1:] <= real[:, :-1]).all()):
            # Padding after the text: no real query reads it, so all sequences share one geometry
            attention_mask, query_index, key_index = None, rows[None], keys[None]
        else:
            query_index, key_index = _at(index, rows), _at(index, keys)
    record_tokens(valid)
    alike = attention_mask is None and key_index.shape[0] == 1 and bool(key_index[0, -1] == query_index[0, -1])
    if alike and mask_function is causal_mask_function:
        return key_index.to(torch.int32)[:, None, None]
    keep = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        use_vmap=use_vmap,
        device=device,
    )[:, 0]
    if alike and q_length == 1 and bool(keep.all()):  # a window of the model's own that is longer
        return key_index.to(torch.int32)[:, None, None]
    if key_index.shape[0] == 1 and batch_size > 1 and bool((keep == keep[:1]).all()):
        keep = keep[:1]
    return _code(query_index, key_index, keep)


def _write_indices(real: Tensor) -> Tensor:
    """Return how many tokens of a sequence were written before each one, (batch, n); -1 for padding."""
    return torch.where(real, real.cumsum(1) - 1, -1)


def _at(index: Tensor, positions: Tensor) -> Tensor:
    """Look up (batch, n) write indices at absolute positions; positions beyond the mask are not written yet."""
    inside = positions < index.shape[1]
    return torch.where(inside, index[:, positions.clamp(max=index.shape[1] - 1)], -1)


def _code(query_index: Tensor, key_index: Tensor, keep: Tensor) -> Tensor:
    age = query_index[:, :, None] - key_index[:, None, :]
    written = (query_index >= 0)[:, :, None] & (key_index >= 0)[:, None, :]
    age = torch.where(keep & written, age, -1)
    if bool((age < -1).any()):
        raise ValueError("a query reads a token after it: gain-cell attention is causal")
    return torch.cat([key_index.expand(age.shape[0], -1)[:, None, :], age], dim=1).to(torch.int32)[:, None]


def _code_of_plain_mask(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """Rebuild the code from a caller's own 4-D mask (bool, or float with 0 where read), aligned lower right."""
    query_index = torch.arange(queries, device=device) + keys - queries
    key_index = torch.arange(keys, device=device)
    causal = query_index[:, None] >= key_index
    if mask is None:
        return key_index.to(torch.int32)[None, None, None]
    read = mask if mask.dtype == torch.bool else mask >= 0
    return _code(query_index[None], key_index[None], read[:, 0, :, :keys] & causal)


def gain_cell_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Compute attention of one layer; the signature is that of an attention function of transformers.

    ``scaling`` is not used: the range scalers and the saturation take its place.
    """
    cells: GainCellAttention | None = getattr(module, NAME, None)
    if cells is None:
        raise ValueError(
            f"{type(module).__name__} runs attention {NAME!r} without a device: call hwsim.emulate(model, device)"
        )
    if dropout:
        warnings.warn("attention dropout is not applied on gain-cell arrays", stacklevel=2)
    rounded = torch.is_autocast_enabled(query.device.type)
    dtype = torch.float32 if rounded or query.dtype.itemsize < 4 else query.dtype  # arrays are emulated in no less
    with torch.autocast(query.device.type, enabled=False) if rounded else nullcontext():
        out = _attended(module, cells, query.to(dtype), key, value, attention_mask)
    return out.transpose(1, 2).contiguous().to(query.dtype), None


def _attended(
    module: nn.Module, cells: GainCellAttention, query: Tensor, key: Tensor, value: Tensor, code: Tensor | None
) -> Tensor:  # fmt: skip
    """Return (batch, heads, queries, head_dim) in the dtype of the query."""
    if code is None:
        code = _code_of_plain_mask(None, query.shape[2], key.shape[2], query.device)
    elif code.dtype != torch.int32:  # one code for each mask: a recomputing backward pass must meet its noise key again
        made = _TABLES.setdefault(code, {})
        shape = (query.shape[2], key.shape[2])
        if shape not in made:
            made[shape] = _code_of_plain_mask(code, *shape, query.device)
        code = made[shape]
    tables, noise = _tables(code, query.shape[2], cells, query.dtype)
    layer = _index(module)
    record_attention(
        layer, tables.layout, query.shape[1], key.shape[1], query.shape[3], query.shape[0], cells.device,
        token_period_s=cells.token_period_s, rotary_dim=cells.rotary_dim,
    )  # fmt: skip
    noise = cells.noise_seed if noise is _UNSET else noise
    written = layer_of(key)
    out = None if written is None else written.attend(cells, query, key, value, tables, noise, layer)
    if out is None:
        keys = sequence_keys(noise, query.shape[0], query.device)
        key, value = key.to(query.dtype), value.to(query.dtype)
        out = cells(query, key, value, tables, Place(cells.die, keys, layer))
    return out


def _tables(code: Tensor, queries: int, cells: GainCellAttention, dtype: torch.dtype) -> tuple[AttentionTables, Any]:
    """Return the tables of this forward pass and its noise key; a recomputing backward pass meets the same."""
    made = _TABLES.setdefault(code, {})
    if "noise" not in made or torch._C._current_graph_task_id() == -1:  # a backward pass keeps its forward pass's key
        made["noise"] = _NOISE.get()
    wanted = (id(cells.device), cells.token_period_s, dtype)
    if wanted not in made:
        rows = code[:, 0].long()
        if rows.shape[1] == 1:
            layout = stretch_layout(Stretch(queries, rows.shape[2], int(rows[0, 0, 0])), cells.device, code.device)
        else:
            layout = slot_layout(rows[:, 0], rows[:, 1:], cells.device)
        made[wanted] = AttentionTables(layout, cells.device, cells.token_period_s, dtype)
    return made[wanted], made["noise"]


AttentionInterface.register(NAME, gain_cell_forward)
AttentionMaskInterface.register(NAME, gain_cell_mask)


def emulate(
    model: nn.Module,
    device: DeviceModel,
    *,
    attention: bool = True,
    linears: bool = True,
    die_seed: int | Die | None = 0,
    noise_seed: int | None = 0,
    token_period: float | Literal["auto"] | None = "auto",
) -> nn.Module:
    """Put a causal language model on a device, in place.

    Attention layers get range scalers (existing ones are kept, so a model can change its device), linear layers of
    the decoder become ternary :class:`BitLinear` layers (existing ones are kept). Embeddings, norms, the LM head and
    adapters stay digital. A model that was trained with softmax or full-precision weights loses accuracy until it is
    fine-tuned.

    Args:
        model: Hugging Face causal language model, or a peft model around one.
        device: The device.
        attention: Whether attention runs on gain cells.
        linears: Whether linear layers run on ternary arrays.
        die_seed: Which chip of the device: its static deviations follow from this number; or a :class:`Die`. None is
            the design without static deviations.
        noise_seed: Key of everything random at writes and reads; :func:`noise_key` sets it for single passes. None
            switches it off.
        token_period: [s] time between two tokens, or ``"auto"``: the model's own latency per token on this device.

    Returns:
        The same model.

    Raises:
        InputError: If the model's attention cannot be replaced, it has no layer to emulate, or the period is not
            positive.
    """
    inner = _pretrained(model)
    if attention:  # before anything changes
        _replaceable_attention(inner)
        _check_period(device, token_period)
    die = Die(die_seed, device) if isinstance(die_seed, int) else die_seed
    die = None if die is None else die.on(device)
    if linears:
        _put_linears_on_arrays(inner, device, die, noise_seed)
    if _WATCHES not in inner.__dict__:  # before the period is worked out, which counts a token
        counted = [*decoders(inner), inner.get_output_embeddings()]
        inner.__dict__[_WATCHES] = [part.register_forward_pre_hook(watch) for part in counted if part is not None]
    period = None
    if attention:
        _put_attention_on_cells(inner, device, die, noise_seed)
        period = _period(inner, device, token_period)
        for layer in _attention_layers(inner):
            getattr(layer, NAME).token_period_s = period
    parts = [part for part, wanted in (("attention", attention), ("linear", linears)) if wanted]
    warn_of_idle_effects(
        device, die=die is not None, noise=noise_seed is not None, token_period_s=period, parts=parts
    )  # fmt: skip
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo :func:`emulate`: softmax attention and the former linear layers return.

    Weights stay as trained; only GPT-2's transposed ones are copies and return as they were before.
    """
    inner = _pretrained(model)
    former = inner.__dict__.pop("_attention_before_gain_cell", None)
    if former is not None:
        for layer in _attention_layers(inner):
            delattr(layer, NAME)
        inner.set_attn_implementation(former)
    for hook in (*inner.__dict__.pop(_WATCHES, ()), *inner.__dict__.pop(_PLACE_HOOKS, ())):
        hook.remove()
    for part in (inner, *decoders(inner)):
        part.__dict__.pop(_PLACES, None)
    for name, layer in list(inner.named_modules()):
        if isinstance(layer, BitLinear):
            layer.on_arrays = None
            layer.set_range(None)
            if (plain := layer.__dict__.pop("_replaced", None)) is not None:
                inner.set_submodule(name, plain)
    return model


def _index(layer: nn.Module) -> int:
    """Return the place of an attention layer in its model."""
    return int(getattr(layer, "layer_idx", None) or 0)


def _pretrained(model: nn.Module) -> PreTrainedModel:
    for candidate in model.modules():
        if isinstance(candidate, PreTrainedModel):
            return candidate
    raise InputError("not a Hugging Face model", where=type(model).__name__, expected="a transformers causal LM")


def _attention_layers(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Attention")
        and hasattr(module, "layer_idx")
        and not isinstance(module, GainCellAttention)
        and not getattr(module, "is_cross_attention", False)
    ]


def _replaceable_attention(model: PreTrainedModel) -> list[nn.Module]:
    name, layers = type(model).__name__, _attention_layers(model)
    if not layers or not getattr(model, "_supports_attention_backend", False):
        raise InputError(
            "the attention of this model cannot be replaced",
            where=name,
            expected="a model that uses transformers' AttentionInterface",
        )
    if not all(getattr(layer, "is_causal", True) for layer in layers):
        raise InputError("attention is not causal", where=name, expected="a causal language model")
    return layers


def _put_attention_on_cells(model: PreTrainedModel, device: DeviceModel, die: Die | None, noise: int | None) -> None:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    for layer in _replaceable_attention(model):
        cells = getattr(layer, NAME, None)
        if cells is None:
            # The layer's own: embeddings may be kept in 16 bits, packed weights in bytes
            like = next(t for t in (*layer.parameters(), *layer.buffers()) if t.dtype.is_floating_point)
            cells = GainCellAttention(heads, kv_heads, device, None).to(like.device, like.dtype)
            setattr(layer, NAME, cells)
        else:
            cells.put_on(device)
        cells.die = None if die is None else die.at_layer(_index(layer))
        cells.noise_seed = noise
        cells.rotary_dim = _rotary_dim(model, layer)
    if "_attention_before_gain_cell" not in model.__dict__:
        model.__dict__["_attention_before_gain_cell"] = model.config._attn_implementation
        model.set_attn_implementation(NAME)


def _rotary_dim(model: PreTrainedModel, layer: nn.Module) -> int:
    """Return how many dimensions of a head the rotary embedding of a model turns; 0 where it has none."""
    if not any(type(part).__name__.endswith("RotaryEmbedding") for part in model.modules()):
        return 0
    config = model.config.get_text_config()
    head_dim = getattr(layer, "head_dim", None) or getattr(layer, "head_size", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    return int(head_dim * rotary_share(config.to_dict()))


def _put_linears_on_arrays(model: PreTrainedModel, device: DeviceModel, die: Die | None, noise: int | None) -> None:
    head, places = model.get_output_embeddings(), _token_places(model)
    places.noise_seed = noise
    found = 0
    for name, layer in list(model.named_modules()):
        if layer is head or "lora_" in name or ".gain_cell" in name:
            continue
        if isinstance(layer, Conv1D) or type(layer) is nn.Linear:
            linear = BitLinear.from_linear(as_linear(layer) if isinstance(layer, Conv1D) else layer)
            linear.__dict__["_replaced"] = layer
            model.set_submodule(name, linear)
        else:
            linear = layer
        if isinstance(linear, BitLinear):
            place = name.removesuffix(".base_layer")  # an adapter around the layer does not move it on the chip
            linear.put_on(OnArrays(device.linear, place, None if die is None else die.seed, places))
            found += 1
    if not found:
        raise InputError("no linear layer to put on arrays", where=type(model).__name__, remedy="pass linears=False")


def _token_places(model: PreTrainedModel) -> TokenPlaces:
    """Return what the ternary layers of a model share: whose tokens run. A hook on its decoder keeps it up to date."""
    if _PLACES not in model.__dict__:
        places, parts = TokenPlaces(), decoders(model)
        hooks = [part.register_forward_pre_hook(_note_tokens, with_kwargs=True) for part in parts]
        for part in {model, *parts}:  # found there by the hook, so that a copy of the model has places of its own
            part.__dict__[_PLACES] = places
        model.__dict__[_PLACE_HOOKS] = hooks
    return cast(TokenPlaces, model.__dict__[_PLACES])


def _note_tokens(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note write index and noise key of each token of a forward pass, as the mask of the attention has them."""
    places: TokenPlaces | None = decoder.__dict__.get(_PLACES)
    if places is None:
        return
    given = inspect.signature(decoder.forward).bind_partial(*args, **kwargs).arguments
    tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    if tokens is None:
        return
    batch, length = tokens.shape[:2]
    cache, mask, noise = given.get("past_key_values"), given.get("attention_mask"), _NOISE.get()
    keys = sequence_keys(places.noise_seed if noise is _UNSET else noise, batch, tokens.device)
    index = (torch.arange(length, device=tokens.device) + (0 if cache is None else cache.get_seq_length()))[None]
    if isinstance(mask, Tensor) and mask.dim() == 2:
        index = _at(_write_indices(mask.to(tokens.device).bool()), index[0])
    places.keys = None if keys is None else keyed(keys[:, None], index)


def as_linear(conv: Conv1D) -> nn.Linear:
    """Return GPT-2's transposed linear layer as a linear layer with the same weights."""
    inputs, outputs = conv.weight.shape
    with torch.device("meta"):
        linear = nn.Linear(inputs, outputs)
    linear.weight, linear.bias = nn.Parameter(conv.weight.detach().T.contiguous()), conv.bias
    return linear


def _period(model: PreTrainedModel, device: DeviceModel, token_period: float | Literal["auto"] | None) -> float | None:
    if token_period == "auto":
        return token_latency_s(model, device) if device.decays else None
    return token_period


def _check_period(device: DeviceModel, token_period: float | Literal["auto"] | None) -> None:
    if token_period == "auto":
        return
    if token_period is None and device.decays:
        raise InputError("no token period", where=device.name, expected="seconds between two tokens, or 'auto'")
    if token_period is not None and not token_period > 0:
        raise InputError("wrong token period", where=device.name, expected="> 0 s", received=token_period)


@torch.no_grad()
def token_latency_s(model: PreTrainedModel, device: DeviceModel) -> float:
    """Return the modelled latency [s] of one token of an emulated model once its window is full.

    All layers one after another: attention, ternary arrays, digital layers; heads and sub-tiles in parallel.
    """
    for layer in gain_cell_layers(model):
        layer.token_period_s = 1e-30  # any period serves: only events are looked at
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with count_events() as counts:
        model(input_ids=token, use_cache=False)
    counts.record(None, {"attention.tile_add": (device.subtiles - 1) * counts["attention.layer_pass"]})
    return price(counts, device).latency_s
