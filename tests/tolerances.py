"""Every tolerance of the tests, each with the reason for its size."""

FLOAT64 = 1e-12
"""Relative: two orders of summation over at most 1000 x 80 terms in float64 (about 1e3 roundings of 1e-16)."""

TWINS = 1e-9
"""Of the largest value, float64: cells with a spread of time constants are interpolated to 1e-11 of full scale."""

PRINTED_CURRENT_UA = 5e-3
"""[uA] cell currents are published with two to three decimals; this is the rounding of the coarsest."""

FLOAT32 = 1e-5
"""Of the largest value: summation order over 1000 x 80 terms in float32."""

FLOAT32_FLIPS = 1e-3
"""Share of float32 outputs that may lie one readout step apart: sums 1e-6 apart on either side of a rounding tie."""

FLOAT32_GRADIENT = 1e-3
"""Of the largest gradient, root mean square: a clip at the edge of its range may gate one element more or less."""

FINITE_DIFFERENCE = 1e-3
"""Relative: central difference of step 1e-7; a few of 1e5 clips change side within the step."""

PATHS = 1e-9
"""Absolute, on logits of order 1 in float64: cached, chunked and padded passes through two layers."""

MATTERS = 1e-3
"""Change of a logit that counts as an effect; a million times ``PATHS``."""

FREEZE = 2e-6
"""Of the largest output: the scale multiplies the sum instead of each weight, in float32."""

CHECKPOINT = 1e-5
"""Of the largest logit, float32: whole numbers times scales against transformers' products of rounded values, through
two layers (measured: below 2e-6)."""

CHECKPOINT_MATTERS = 0.05
"""Of the largest logit: what a wrong scale or a norm too many changes; a few thousand times ``CHECKPOINT``."""

PARITY = 1e-5
"""Absolute; the rule of the oracle's README for float32 outputs of the published code, before the output scaler."""

PARITY_FLIPS = 1e-3
"""Share of quantised outputs that may lie whole steps away; the rule of the oracle's README."""

PEER_FLOAT32 = 3e-7
"""Absolute, on outputs of order 1: other simulators add 64 to 256 terms in float32 (measured: 1.2e-7)."""

PARITY_GRADIENT = 1e-5
"""Of the largest gradient: float32 sums over 160 x 64 terms (measured: below 1e-6 for q, k, v)."""

SUM = 1e-12
"""Relative: a handful of float64 additions, as in parts that sum to a total. Energies are smaller than the absolute
tolerance that pytest.approx adds by itself: say ``abs=0.0`` beside it."""

THREE_DIGITS = 5e-3
"""Relative: the paper prints three significant digits or fewer."""

ADC_TABLE = 0.02
"""Relative: the table of the survey regression prints four decimals of a pJ, of which 0.03 pJ keeps two digits."""

STIMULUS = 0.05
"""Relative: the published stimulus is known by its charge alone; pulse grid and readout move it by a few per cent."""

DECAYED = 1e-3
"""Relative: cells of up to 64 tokens of 65 ns have lost up to 0.08 % of their signal at 5 ms."""

TWO_DIGITS = 0.02
"""Relative: device files round derived prices to two digits, the coarsest of them 0.158 pJ to 0.16 pJ."""

BATCH_OF_ONE = 1e-3
"""Relative, of a gradient's norm, float32: sums of other shapes differ in their last bits, which may move an activation
over the edge of an 8-bit code (measured: below 3e-4)."""

MASKED_MEAN = 1e-6
"""Absolute, of values of order 1: Flower's mean of float32 is off by a few 1e-7, the masked mean by 2^-31 and one
rounding to float32; adaptive servers multiply that by up to ten."""

NATIVE_FLIPS = 1e-4
"""Share of outputs of the C kernels, float32, that may lie one readout step from float64 (measured: below 3e-5)."""

AGED = 1e-4
"""Of the largest output: cells of their own time constants err by 2e-6 of full scale, rms, and 64 of them add up."""
