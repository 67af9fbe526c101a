"""Defects of BitNet elsewhere, each with a test that it is not ours.

Where transformers fails, its failure is pinned with the version that it was seen on: if a newer one works, the test
says so, and the remark and the pin can go.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitNetQuantConfig, GPT2Config, GPTNeoXConfig, PreTrainedModel
from transformers.integrations.bitnet import AutoBitLinear, WeightQuant
from transformers.trainer_utils import validate_quantization_for_training

from device_models import InputError, load_device
from fllm.model.adapters import attach_adapter, get_adapter, set_adapter
from fllm.model.checkpoints import WEIGHTS, load_causal_lm, write_packed
from fllm.model.checkpoints.conversion import frozen_weight, ternarise
from fllm.sections import LoraSettings
from hwsim import BitLinear, emulate
from hwsim.linear import OnArrays, TokenPlaces
from hwsim.randomness import keyed
from tests.fllm.made_checkpoints import (
    ABSENT,
    INVERSE,
    OFFLINE,
    ONLINE,
    bitnet,
    largest_difference,
    llama,
    master_tensors,
    packed_tensors,
    plain_model,
    projections,
    theirs_in_float32,
    write_folder,
)
from tests.fllm.small import logits, scrambled
from tests.tolerances import CHECKPOINT, CHECKPOINT_MATTERS, FREEZE

SEEN_ON = (5, 23)
"""Version of transformers that the failures were seen on."""


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    model = plain_model(bitnet())
    return write_folder(tmp_path / "packed", model.config, packed_tensors(model, inverse=False), OFFLINE)


def fails_in_transformers(act: Callable[[], object], *errors: type[Exception]) -> None:
    """Assert a failure of the version that it was seen on; another one may have mended it."""
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version <= SEEN_ON:
        with pytest.raises(errors):
            act()
        return
    try:
        act()
    except errors:
        return
    pytest.skip(f"transformers {transformers.__version__} has mended this; ours is tested above, drop the pin")


def test_packed_in_float32(packed: Path) -> None:
    """Loading a packed file in float32 leaves embeddings in bfloat16, and the forward pass meets two dtypes."""
    model = load_causal_lm(packed, large=False).model
    assert all(t.dtype == torch.float32 for t in model.state_dict().values())
    assert logits(model).isfinite().all()
    theirs = AutoModelForCausalLM.from_pretrained(packed, local_files_only=True, dtype=torch.float32)
    fails_in_transformers(lambda: logits(theirs), RuntimeError)


def test_saving_what_was_loaded_packed(packed: Path, tmp_path: Path) -> None:
    """A packed model cannot be saved again."""
    model = load_causal_lm(packed).model
    write_packed(model, tmp_path / "again")
    assert torch.equal(logits(load_causal_lm(tmp_path / "again").model), logits(model))
    theirs = AutoModelForCausalLM.from_pretrained(packed, local_files_only=True)
    fails_in_transformers(lambda: theirs.save_pretrained(tmp_path / "theirs"), NotImplementedError)


def test_outputs_that_are_no_multiple_of_four(tmp_path: Path) -> None:
    """The packer rounds the rows up, the layer rounds them down, and the file does not load."""
    model = plain_model(bitnet(intermediate_size=50))
    tensors = packed_tensors(model, inverse=False)
    for name in projections(model):  # in 32 bits, so that nothing else differs
        tensors[f"{name}.weight_scale"] = model.get_submodule(name).weight.detach().abs().mean().reshape(1)
    folder = write_folder(tmp_path / "m", model.config, tensors, OFFLINE)
    online = write_folder(tmp_path / "online", model.config, master_tensors(model), ONLINE)
    for large in (False, True):
        loaded = load_causal_lm(folder, large=large).model
        assert loaded.get_submodule("model.layers.0.mlp.up_proj").weight.shape == (50, 32)
        expected = logits(load_causal_lm(online, large=large).model)
        assert largest_difference(logits(loaded), expected) < CHECKPOINT
    with pytest.raises(InputError, match="multiple of 4 outputs"):
        write_packed(loaded, tmp_path / "again")
    fails_in_transformers(lambda: logits(theirs_in_float32(folder)), RuntimeError, ValueError)


def test_bias_is_not_scaled(tmp_path: Path) -> None:
    """AutoBitLinear multiplies the bias by the scale of the weights."""
    model = plain_model(llama(attention_bias=True))
    folder = write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=False), OFFLINE)
    name = "model.layers.0.self_attn.q_proj"
    ours = load_causal_lm(folder).model.get_submodule(name)
    x = torch.zeros(1, 32)
    assert torch.equal(ours(x)[0], model.get_submodule(name).bias.bfloat16().float())
    theirs = theirs_in_float32(folder).get_submodule(name)
    assert isinstance(theirs, AutoBitLinear)
    mended = largest_difference(theirs(x)[0], ours(x)[0]) < CHECKPOINT
    assert not mended, f"transformers {transformers.__version__} no longer scales it: autobitlinear serves biases too"


@pytest.mark.parametrize("kind", [OFFLINE, INVERSE, ABSENT], ids=["autobitlinear", "bitlinear", "absent"])
def test_both_conventions_of_the_scale(tmp_path: Path, kind: dict) -> None:
    """The scale is stored as mean |W| or as its reciprocal, told by ``linear_class`` alone; the wrong one loads too."""
    model = plain_model(llama())
    tensors = packed_tensors(model, inverse=kind is not OFFLINE)
    loaded = load_causal_lm(write_folder(tmp_path / "m", model.config, tensors, kind)).model
    name = "model.layers.1.mlp.down_proj"
    mean = float(model.get_submodule(name).weight.abs().mean())
    assert float(loaded.get_submodule(name).weight_scale) == pytest.approx(mean, rel=2**-8)


def test_ternary_weights_are_not_rounded_again(tmp_path: Path, packed: Path) -> None:
    """Rounding weights that are ternary multiplies their scale by the share of non-zeros."""
    weight = 0.25 * torch.randint(-1, 2, (64, 64), generator=torch.Generator().manual_seed(0)).float()
    theirs = WeightQuant.apply(weight)
    assert float(theirs.abs().max()) < 0.25 * 0.75
    assert float(frozen_weight(weight)[1]) == 0.25
    # a packed file written out as plain floats, and read as master weights or as a plain model
    model = load_causal_lm(packed).model
    expected = logits(model)
    tensors = {name: t.clone() for name, t in model.state_dict().items() if "lm_head" not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, BitLinear):
            tensors[f"{name}.weight"] = layer.weight * tensors.pop(f"{name}.weight_scale")
    for kind in (ONLINE, None):
        folder = write_folder(tmp_path / str(kind is None), model.config, tensors, kind)
        assert largest_difference(logits(load_causal_lm(folder).model), expected) < CHECKPOINT
        if kind is not None:
            assert largest_difference(logits(theirs_in_float32(folder)), expected) > CHECKPOINT_MATTERS
    # packing twice
    for layer in model.modules():
        if isinstance(layer, BitLinear):
            layer.freeze_()
            layer.pack_()
            layer.pack_()
    assert torch.equal(logits(model), expected)


CHILD = """
import resource, sys, time
import torch
from pathlib import Path
from fllm.model.checkpoints import load_causal_lm
folder, ids = Path(sys.argv[1]), torch.arange(8)[None]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
model = load_causal_lm(folder, large=True).model
print(peak() - before)
print(float(model(input_ids=ids, logits_to_keep=1).logits.sum()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read by a module that Windows has not")
def test_no_compiler_is_needed_and_loading_takes_no_more_than_the_file(tmp_path: Path) -> None:
    """Every quantising function is compiled at its first call, which needs a working C++ compiler."""
    config = bitnet(vocab_size=120_000, hidden_size=256, intermediate_size=1024)
    model = plain_model(config)
    folder = write_folder(tmp_path / "m", config, packed_tensors(model, inverse=False), OFFLINE)
    size = (folder / WEIGHTS).stat().st_size
    assert size > 60e6
    environment = {**os.environ, "CXX": "/bin/false", "CC": "/bin/false"}
    environment.pop("TORCHDYNAMO_DISABLE")
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    taken, total = (float(line) for line in run.stdout.split())
    assert taken < 0.5 * size  # mapped: what is not used is not read; float32 would be twice the size
    expected = float(logits(load_causal_lm(folder, large=False).model, torch.arange(8)[None])[:, -1].sum())
    assert total == pytest.approx(expected, rel=1e-3)


SETTINGS = LoraSettings(r=2)


def trained_step(adapted: nn.Module) -> dict[str, Tensor]:
    adapted.train()
    ids = torch.arange(2, 22)[None]
    adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}


def test_adapters_train_beside_packed_weights(packed: Path) -> None:
    """Training an adapter beside packed weights is refused, though nothing speaks against it."""
    grads = {}
    for large in (True, False):
        model = load_causal_lm(packed, large=large).model
        emulate(model, load_device("ideal"), token_period=1e-5)
        adapted = attach_adapter(model, SETTINGS, base_name="base", seed=0)
        set_adapter(adapted, scrambled(get_adapter(adapted)))
        grads[large] = trained_step(adapted)
        assert len(grads[large]) == 2 * 14 and all("lora_" in name for name in grads[large])
        assert all(grad.abs().max() > 0 for grad in grads[large].values())
    for name, grad in grads[False].items():
        assert largest_difference(grads[True][name], grad) < 1e-3, name  # the head of the large one is in 16 bits
    theirs = AutoModelForCausalLM.from_pretrained(packed, local_files_only=True)
    theirs = get_peft_model(theirs, LoraConfig(r=2, target_modules=["q_proj"]))
    fails_in_transformers(lambda: validate_quantization_for_training(theirs), ValueError)


def test_any_plain_model_can_be_trained_as_ternary(tmp_path: Path) -> None:
    """Training with ternary weights is refused unless the file says that it is quantised already."""
    model = plain_model(llama())
    model.save_pretrained(tmp_path)
    emulate(model, load_device("ideal"), token_period=1e-5)
    grads = trained_step(model)
    assert all(f"{name}.weight" in grads for name, layer in model.named_modules() if isinstance(layer, BitLinear))
    kind = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="online")
    fails_in_transformers(lambda: AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=kind), ValueError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["online", "offline", "packed"])
@pytest.mark.parametrize("device", [None, "ideal", "gaincell_28nm"])
def test_one_bad_activation_stays_in_its_token(value: float, kind: str, device: str | None) -> None:
    """One NaN or infinity spoils the scale of its token.

    So it must: a finite result would pass for one. Other tokens, in their batch and sequence, keep every bit.
    """
    torch.manual_seed(0)
    layer = BitLinear.from_linear(nn.Linear(32, 16))
    if kind != "online":
        layer.freeze_()
    if kind == "packed":
        layer.pack_()
    if device is not None:
        array = load_device(device).linear
        places = TokenPlaces(keyed(torch.tensor([3, 4])[:, None], torch.arange(5)[None]), 0)
        layer.put_on(OnArrays(array, "layer", die_seed=1, places=places))
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        good = layer(x)
        x[1, 2, 7] = value
        bad = layer(x)
    touched = torch.zeros(2, 5, dtype=torch.bool)
    touched[1, 2] = True
    assert torch.equal(bad[~touched], good[~touched])
    assert not bad[touched].isfinite().any()


def test_peft_adapts_packed_layers(packed: Path) -> None:
    """peft knows no packed ternary layer."""
    model = load_causal_lm(packed, large=True).model
    before = logits(model)
    emulate(model, load_device("ideal"), attention=False)
    adapted = attach_adapter(model, SETTINGS, base_name="base", seed=0).eval()
    assert torch.equal(logits(adapted), before)
    set_adapter(adapted, scrambled(get_adapter(adapted)))
    assert largest_difference(logits(adapted), before) > CHECKPOINT_MATTERS
    with pytest.raises(RuntimeError, match="cannot be merged"):
        adapted.merge_and_unload()
    theirs = load_file(packed / WEIGHTS)
    inverse = packed.parent / "inverse"
    scales = {name: 1 / t if name.endswith("scale") else t for name, t in theirs.items()}
    write_folder(inverse, plain_model(bitnet()).config, scales, INVERSE)
    other = AutoModelForCausalLM.from_pretrained(inverse, local_files_only=True)
    fails_in_transformers(lambda: get_peft_model(other, LoraConfig(target_modules=["q_proj"])), ValueError)


def test_packing_does_not_round_the_scale(tmp_path: Path) -> None:
    """Scales in bfloat16 make packed and master weights differ."""
    model = plain_model(bitnet())
    online = load_causal_lm(write_folder(tmp_path / "online", model.config, master_tensors(model), ONLINE)).model
    write_packed(online, tmp_path / "packed")
    assert load_file(tmp_path / "packed" / WEIGHTS)["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.float32
    assert torch.equal(logits(load_causal_lm(tmp_path / "packed").model), logits(online))
    # and freezing itself: beside master weights that are rounded in each pass
    emulated: PreTrainedModel = emulate(plain_model(bitnet()), load_device("ideal"), attention=False)  # type: ignore
    for layer in emulated.modules():
        if isinstance(layer, BitLinear):
            layer.on_arrays = None
    assert largest_difference(logits(online), logits(emulated)) < 10 * FREEZE


def test_models_whose_layers_are_of_another_class(tmp_path: Path) -> None:
    """Swapping ``nn.Linear`` finds nothing in GPT-2, and says nothing."""
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    found = ternarise(plain_model(config), [])
    assert found is not None and found.layers == 8
    bare = plain_model(GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=0, num_attention_heads=2, intermediate_size=48
    ))  # fmt: skip
    with pytest.raises(InputError, match="no linear layer to make ternary"):
        ternarise(bare, [])
    bare.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no linear layer to make ternary"):
        load_causal_lm(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes of files")
def test_files_can_be_read_by_others(packed: Path, tmp_path: Path) -> None:
    """safetensors writes files that only their owner can read."""
    write_packed(load_causal_lm(packed).model, tmp_path / "m", shard_bytes=2500)
    files = list((tmp_path / "m").iterdir())
    assert len(files) > 4
    former = os.umask(0)
    os.umask(former)
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044 & ~former
    save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) in (0o600, 0o644)
