"""What a token of generated text costs: cells written once, against all of the window's at each token, and softmax.

Run: ``python benchmarks/generation.py [--tokens 300]``. The shipped model on ``gaincell_28nm``, its window as it is,
one text behind a prompt of 100 tokens. A ring cache, the cache of keys and values alone that it took the place of, and
the same model with softmax attention, digital layers and transformers' own cache take turns at each token of the same
text; medians and quartiles of ratios of processor time, one thread, over two stretches of the text. Parity is checked
first, in double precision. Events are counted, as ``fllm generate`` does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from device_models import load_device
from fllm.model.base import load_model
from hwsim import count_events, emulate, gain_cell_layers, noise_key, restore, ring_cache

PROMPT, STRETCH, PERIOD = 100, 100, 1e-5
EXACT_ARRAYS: Mapping[str, object] = {"linear.adc_range": "ideal", "linear.gain_sigma": 0.0, "linear.noise": 0.0}
CASES: Mapping[str, Mapping[str, object]] = {"everything on": {}, "exact linear arrays": EXACT_ARRAYS}


def model_on(overrides: Mapping[str, object]) -> nn.Module:
    """Return the shipped model on ``gaincell_28nm``, a chip with noise."""
    return load_model(None, load_device("gaincell_28nm", overrides), PERIOD, []).model.eval()


def keys_alone(model: nn.Module) -> Cache:
    """Return a cache of keys and values as far back as the device's window."""
    return Cache(layers=[DynamicSlidingWindowLayer(cells.device.window.tokens) for cells in gain_cell_layers(model)])


class Text:
    """One text in the making.

    Args:
        model: The model.
        cache: Its cache.
        tokens: (1, n) the text; the prompt is read at once.
    """

    def __init__(self, model: nn.Module, cache: Cache, tokens: Tensor) -> None:
        self.model, self.cache, self.tokens = model, cache, tokens
        self.feed(0, PROMPT)

    @torch.no_grad()
    def feed(self, start: int, stop: int) -> Tensor:
        """Feed some tokens and return the logits behind the last."""
        with noise_key(3), count_events():
            fed = self.tokens[:, start:stop]
            out = self.model(input_ids=fed, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[0, -1]
        return logits

    def seconds(self, token: int) -> float:
        """Return the processor time of a token."""
        start = time.process_time()
        self.feed(token, token + 1)
        return time.process_time() - start


def check_parity(overrides: Mapping[str, object], tokens: Tensor) -> None:
    """Raise AssertionError unless both caches lead to the same logits, in double precision."""
    model = model_on(overrides).double()
    emulate(model, load_device("gaincell_28nm", overrides), token_period=PERIOD)
    texts = [Text(model, cache, tokens) for cache in (ring_cache(model), keys_alone(model))]
    for token in range(PROMPT, PROMPT + 10):
        ours, theirs = (text.feed(token, token + 1) for text in texts)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=300, help="generated tokens")
    count = parser.parse_args().tokens
    torch.set_num_threads(1)
    tokens = torch.randint(5, 500, (1, PROMPT + count), generator=torch.Generator().manual_seed(0))
    stretches = {(PROMPT + 10, PROMPT + 10 + STRETCH), (PROMPT + count - STRETCH, PROMPT + count)}
    plain = model_on({})
    restore(plain)
    print("| case | tokens | ms per token | of keys alone | quartiles | of softmax attention | quartiles |")
    print("|---|---|---|---|---|---|---|")
    for name, overrides in CASES.items():
        check_parity(overrides, tokens)
        model = model_on(overrides)
        caches = {"ring": ring_cache(model), "keys": keys_alone(model)}
        texts = {what: Text(model, cache, tokens) for what, cache in caches.items()}
        texts["softmax"] = Text(plain, DynamicCache(config=plain.config), tokens)
        taken = {
            token: {what: text.seconds(token) for what, text in texts.items()}
            for token in range(PROMPT, PROMPT + count)
        }
        for start, stop in sorted(stretches):
            some = [taken[token] for token in range(start, stop)]
            row = [name, f"{start} - {stop}", f"{1e3 * statistics.median(each['ring'] for each in some):.1f}"]
            for against in ("keys", "softmax"):
                low, middle, high = statistics.quantiles([each["ring"] / each[against] for each in some], n=4)
                row += [f"{middle:.2f}", f"{low:.2f} - {high:.2f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
