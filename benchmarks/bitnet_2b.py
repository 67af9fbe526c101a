"""What a packed checkpoint of the size of BitNet b1.58 2B4T takes: memory and seconds.

Run: ``python benchmarks/bitnet_2b.py [--folder DIR] [--tokens 16] [--no-chip]``. Writes random ternary weights of the
exact shapes, about 1.2 GB, to a folder that goes afterwards unless it is named; loads them; puts the model on
gaincell_28nm and sets the ranges of its converters; computes one forward pass on the design, then one on a chip with
noise (``--no-chip`` leaves that out: the deviations of two billion weights are drawn anew in each pass). Writing and
computing are processes of their own, so that a peak is that of its step; 0.4 GB of it are the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fllm.memory import peak_memory_bytes

SHAPES = Path(__file__).parents[1] / "configs" / "models" / "bitnet-2b4t.json"


def main() -> None:
    """Write and compute, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write, and leave, the checkpoint")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-chip", action="store_true", help="no pass with a chip's deviations and noise")
    parser.add_argument("--step", choices=("write", "compute"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "write":
        write(args.folder, args.threads)
    elif args.step == "compute":
        compute(args.folder, args.tokens, args.threads, chip=not args.no_chip)
    else:
        with tempfile.TemporaryDirectory() as place:
            folder = args.folder or Path(place)
            for step in ("write", "compute"):
                command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--step", step]
                subprocess.run(command, check=True, env={"OMP_NUM_THREADS": str(args.threads)} | dict(os.environ))


def write(folder: Path, threads: int) -> None:
    """Write a random packed checkpoint."""
    import torch
    from accelerate import init_empty_weights
    from torch import nn
    from transformers import BitNetConfig, BitNetForCausalLM

    from fllm.model.checkpoints import write_packed
    from hwsim import BitLinear
    from hwsim.functional.packing import pack_codes

    torch.set_num_threads(threads)
    with init_empty_weights(include_buffers=False):
        model = BitNetForCausalLM(BitNetConfig(**json.loads(SHAPES.read_text(encoding="utf-8"))))
    made = torch.Generator().manual_seed(0)
    with measured("random weights"):
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                codes = torch.randint(-1, 2, layer.weight.shape, dtype=torch.int8, generator=made)
                with torch.device("meta"):
                    bit = BitLinear(layer.in_features, layer.out_features, packed=True)
                bit.weight = nn.Parameter(pack_codes(codes), requires_grad=False)
                bit.weight_scale = torch.tensor(layer.in_features**-0.5)
                model.set_submodule(name, bit)
            elif hasattr(layer, "weight") and name != "lm_head":
                weight = torch.empty(layer.weight.shape, dtype=torch.bfloat16)
                weight = weight.normal_(std=0.02, generator=made) if weight.dim() == 2 else weight.fill_(1.0)
                layer.weight = nn.Parameter(weight, requires_grad=False)
        model.tie_weights()
    with measured("write_packed"):
        write_packed(model, folder)


def compute(folder: Path, tokens: int, threads: int, *, chip: bool) -> None:
    """Load the checkpoint, put it on the device, and run it."""
    import torch

    from device_models import load_device
    from fllm.model.checkpoints import load_causal_lm
    from hwsim import calibrate_linear_arrays, emulate

    torch.set_num_threads(threads)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{'imports':<34} peak {(peak_memory_bytes() or 0) / 1e9:.2f} GB")
    with measured("load_causal_lm", size):
        model = load_causal_lm(folder).model
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    device = load_device("gaincell_28nm")

    def forward() -> None:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        if not bool(logits.isfinite().all()):
            raise SystemExit("logits are not finite")

    with measured(f"digital, {tokens} tokens"):
        forward()
    with measured("emulate"):
        emulate(model, device, die_seed=None, noise_seed=None)
    with measured(f"converter ranges from {tokens} tokens"):
        calibrate_linear_arrays(model, [ids])
    with measured(f"design, {tokens} tokens"):
        forward()
    if chip:
        emulate(model, device, die_seed=0, noise_seed=0)
        with measured(f"chip with noise, {tokens} tokens"):
            forward()


@contextmanager
def measured(what: str, size: int | None = None) -> Iterator[None]:
    """Print a block's seconds, of clock and processor, and the process's peak so far, also as a share of a size [B]."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, peak_memory_bytes() or 0
    share = "" if size is None else f"  {peak / size:.2f} x the {size / 1e9:.3f} GB of the file"
    print(f"{what:<34} peak {peak / 1e9:.2f} GB  {wall:7.1f} s, {cpu:6.1f} s CPU{share}", flush=True)


if __name__ == "__main__":
    main()
