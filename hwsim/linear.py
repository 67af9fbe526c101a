"""The ternary linear layer: one module for training, for frozen and packed weights, in digital and on arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from device_models.linear_array import LinearArray, expected_range, full_range
from hwsim.counting import record_linear
from hwsim.functional.bitlinear import (
    Multiplier,
    code_scale,
    eight_bit_activation,
    ternary_codes,
    ternary_product,
    ternary_weight,
)
from hwsim.functional.conversion_noise import Conversions
from hwsim.functional.linear_arrays import ArrayWeights, array_product, made_weights, range_slope
from hwsim.functional.packing import pack_codes, unpack_codes
from hwsim.randomness import scattered


@dataclass(eq=False)
class TokenPlaces:
    """Whose tokens a forward pass computes, shared by the layers of a model: the keys of their read noise.

    Attributes:
        keys: (b or 1, t) key of each token, of its sequence's noise and its write index; None without noise.
        noise_seed: Key where no :func:`hwsim.noise_key` block says otherwise; None switches noise off.
    """

    keys: Tensor | None = None
    noise_seed: int | None = None
    _flat: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def of(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return one key for each token of (batch, tokens, width), or of both flattened; None without noise.

        With them the keys scrambled, as draws begin with: once for all layers of a pass.

        Raises:
            ValueError: If the tensor is not of the pass that runs.
        """
        own, known = self.keys, self._flat
        if own is None:
            return None
        tokens = x.numel() // x.shape[-1]
        if known is not None and known[0] is own and len(known[1]) == tokens and known[1].device == x.device:
            return known[1:]
        keys = own.to(x.device).expand(x.shape[0] if x.dim() == 3 else tokens // own.shape[1], -1).flatten()
        if len(keys) != tokens:
            raise ValueError(f"a ternary layer met {tuple(x.shape)}, its model's pass has {tuple(own.shape)} tokens")
        found = keys, scattered(keys)
        self._flat = own, *found
        return found


@dataclass(eq=False)
class OnArrays:
    """What a ternary layer needs to know of the arrays that it is emulated on.

    Attributes:
        array: The arrays of the device.
        name: Path of the layer in its model: its place on the chip.
        die_seed: Which chip; None is the design without static deviations.
        places: Keys of the noise; None without.
    """

    array: LinearArray
    name: str = ""
    die_seed: int | None = None
    places: TokenPlaces | None = None
    _made: tuple[Tensor, int, ArrayWeights] | None = field(default=None, init=False, repr=False)

    @property
    def exact(self) -> bool:
        """Whether the arrays compute the digital product."""
        array = self.array
        deviates = self.die_seed is not None and bool(array.gain_sigma or array.stuck_at_zero)
        return array.adc_range == "ideal" and not deviates

    def conversions(self, whole: Tensor) -> Conversions | None:
        """Return the keys of the noise for codes of activations (..., inputs); None without noise."""
        keys = None if self.places is None or not self.array.noise else self.places.of(whole)
        return None if keys is None else Conversions(keys[0], self.name, keys[1])

    def weights(self, layer: BitLinear, codes: Callable[[], Tensor]) -> ArrayWeights:
        """Return what the chip made of a layer's codes; kept until its weights change, unless they are packed."""
        stored, version = layer.weight, layer.weight._version
        if self._made is not None and self._made[0] is stored and self._made[1] == version:
            return self._made[2]
        if self.die_seed is None:
            made = ArrayWeights(codes().to(torch.int8))
        else:
            made = made_weights(codes(), self.array, self.die_seed, self.name)
        self._made = None if layer.packed else (stored, version, made)
        return made


class BitLinear(nn.Linear):
    """Linear layer of ternary weights and 8-bit activations (W1.58A8).

    Three ways to hold the weights. *Online*: ``weight`` holds trainable master weights, ternarised at each forward
    pass. *Offline*: ``weight`` holds codes -1, 0, 1 and the buffer ``weight_scale`` the scale. *Packed*: ``weight``
    is (outputs / 4, inputs) uint8, four codes in a byte, unpacked while the layer computes. Offline and packed
    weights are frozen. The bias is added unscaled. State-dict names are those of ``nn.Linear``, plus
    ``weight_scale``, plus ``norm.weight`` where a norm stands in front.

    Attributes:
        norm: Norm of the inputs inside the layer, as some BitNet models have; None without.
        on_arrays: The arrays that the layer is emulated on; None is digital.
        full_scale: [cell currents] (), range of the arrays' converters where the device does not fix it; kept while the
            layer is on another device.
    """

    weight_scale: Tensor | None
    full_scale: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, *, offline: bool = False, packed: bool = False,
        norm: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias)
        self.norm = norm
        self.on_arrays: OnArrays | None = None
        self.register_buffer("full_scale", None, persistent=False)
        self.register_buffer("weight_scale", torch.ones(()) if offline or packed else None)
        if packed:
            if out_features % 4:
                raise ValueError(f"packing needs a multiple of 4 outputs, got {out_features}")
            shape = (out_features // 4, in_features)
            self.weight = nn.Parameter(torch.empty(shape, dtype=torch.uint8, device=self.weight.device), False)
        elif offline:
            self.weight.requires_grad_(False)

    @property
    def offline(self) -> bool:
        """Whether the weights are stored as codes with a scale, packed or not."""
        return self.weight_scale is not None

    @property
    def packed(self) -> bool:
        """Whether four codes share a byte."""
        return self.weight.dtype == torch.uint8

    @property
    def array(self) -> LinearArray | None:
        """The arrays that the layer is emulated on; None is digital."""
        return None if self.on_arrays is None else self.on_arrays.array

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> BitLinear:
        """Make an online BitLinear that shares the weight and bias of a linear layer."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def codes(self) -> Tensor:
        """Return the codes -1, 0, 1, (outputs, inputs) in a floating dtype, in int8 where they are packed."""
        if self.packed:
            return unpack_codes(self.weight.detach(), torch.int8)
        return self.weight.detach() if self.offline else ternary_codes(self.weight.detach())

    @torch.no_grad()
    def freeze_(self) -> None:
        """Turn master weights into codes and scale, in place.

        The layer computes the same up to the last digits: the scale multiplies the sum instead of each weight.
        """
        if self.offline:
            return
        self.weight_scale = code_scale(self.weight)
        self.weight = nn.Parameter(ternary_codes(self.weight).to(self.weight.dtype), requires_grad=False)

    @torch.no_grad()
    def pack_(self) -> None:
        """Pack the codes, four in a byte, in place; master weights are frozen first.

        Raises:
            ValueError: If the outputs are no multiple of four.
        """
        if not self.packed:
            self.freeze_()
            self.weight = nn.Parameter(pack_codes(self.weight), requires_grad=False)

    def put_on(self, on_arrays: OnArrays) -> None:
        """Emulate the layer on arrays; a range of their converters that it has already stays."""
        self.on_arrays, chosen = on_arrays, on_arrays.array.adc_range
        learned = isinstance(self.full_scale, nn.Parameter)
        if chosen in ("calibrated", "learned") and (self.full_scale is None or learned != (chosen == "learned")):
            expected = expected_range(on_arrays.array, self.in_features)
            self.set_range(expected if self.full_scale is None else float(self.full_scale), learned=chosen == "learned")

    def set_range(self, full_scale: float | None, *, learned: bool = False) -> None:
        """Set the range [cell currents] of the converters: a parameter where it is learned, else in no checkpoint."""
        made = None if full_scale is None else torch.tensor(full_scale, device=self.weight.device)
        del self.full_scale
        if learned and made is not None:
            self.full_scale = nn.Parameter(made)
        else:
            self.register_buffer("full_scale", made, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to (..., in_features)."""
        record_linear(self, input)
        x = input if self.norm is None else self.norm(input)
        if self.on_arrays is None and self.weight_scale is None:
            return nn.functional.linear(eight_bit_activation(x), ternary_weight(self.weight), self.bias)
        learned = self.full_scale if isinstance(self.full_scale, nn.Parameter) and self._range() else None
        codes, scale, master = self.codes, self.weight_scale, None
        if scale is None:  # found once for all that needs them, backward included
            made, scale, master = self.codes(), code_scale(self.weight.detach()), self.weight
            codes = lambda: made  # noqa: E731
        multiplier = Multiplier(codes, partial(self._product, codes), partial(self._slope, codes))
        out = ternary_product(x, scale, multiplier, master, learned)
        return out if self.bias is None else out + self.bias

    def _range(self) -> float | None:
        """Return the range of the converters in use; None where sums are not rounded."""
        if self.array is None or self.array.adc_range == "ideal":
            return None
        if self.array.adc_range == "fixed" or self.full_scale is None:
            return full_range(self.array, self.in_features)
        return float(self.full_scale.detach())

    def _product(self, codes: Callable[[], Tensor], whole: Tensor) -> Tensor:
        """Multiply codes of activations (..., inputs) by the codes of the weights."""
        on = self.on_arrays
        if on is None or on.exact:
            return nn.functional.linear(whole, codes().to(whole.dtype))
        return array_product(whole, on.weights(self, codes), on.array, self._range(), on.conversions(whole))

    def _slope(self, codes: Callable[[], Tensor], whole: Tensor) -> Tensor:
        on, full_scale = self.on_arrays, self._range()
        assert on is not None and full_scale is not None
        return range_slope(whole, on.weights(self, codes), on.array, full_scale, on.conversions(whole))
