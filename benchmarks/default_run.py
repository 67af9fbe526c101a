"""What emulation costs of a whole run: ``fllm-run`` beside the same program on softmax attention and digital layers.

Run: ``python benchmarks/default_run.py [options of fllm-run]``, about four minutes on two cores. Both runs are
processes of their own, one after the other, with everything that a run does: data, baselines, Flower, counting, report.
Prints the seconds of each and their ratio. Accuracy of the run without emulation means nothing: its model was trained
for gain cells.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

WITHOUT_EMULATION = "--without-emulation"


def main() -> None:
    """Time both."""
    if WITHOUT_EMULATION not in sys.argv:
        compare(sys.argv[1:])
        return
    sys.argv.remove(WITHOUT_EMULATION)
    replace_emulation()
    from fllm.cli import run_main

    run_main()


def compare(options: list[str]) -> None:
    """Run the program twice, and print what it took."""
    taken = {}
    emulated = ["-c", "from fllm.cli import run_main; run_main()"]
    for name, program in (("without emulation", [__file__, WITHOUT_EMULATION]), ("emulated", emulated)):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, *program, *options, "--out", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            taken[name] = time.perf_counter() - start
        print(f"{name}: {taken[name]:.0f} s", flush=True)
    print(f"ratio: {taken['emulated'] / taken['without emulation']:.2f}")


def replace_emulation() -> None:
    """Let layers on a device compute softmax attention and digital products."""
    from hwsim import modules
    from hwsim.linear import BitLinear

    emulated = modules.attend

    def attend(query: Tensor, key: Tensor, value: Tensor, *given: object, **more: object) -> Tensor:
        if more["watch"] is not None or query.shape[2] != key.shape[2]:  # statistics of a device; one token at a time
            return emulated(query, key, value, *given, **more)
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    modules.attend = attend
    BitLinear._product = lambda _, codes, whole: linear(whole, codes().to(whole.dtype))


if __name__ == "__main__":
    main()
