"""The argument struct of the C kernels, field by field as in ``attention.h``."""

from __future__ import annotations

import ctypes

SIZES = (
    "count", "heads", "queries", "keys", "width", "dims", "window", "slots", "query_start", "key_start", "threads",
    "images_k", "images_v", "images_dk", "images_dv",
)  # fmt: skip
INPUTS = (
    "query", "key", "value", "weight_k", "weight_v", "constant_k", "constant_v", "score_offset", "score_sigma",
    "score_start", "charge_noise", "charge_start", "pool", "gain", "offset",
)  # fmt: skip
RESULTS = (
    "out", "saturated", "grad", "slope_key", "slope_value", "slope_weight_k", "slope_weight_v", "slope_constant_k",
    "slope_constant_v", "grad_query",
    "grad_key", "grad_value", "position",
)  # fmt: skip


class Arguments(ctypes.Structure):
    """Sizes as int64, tensors as addresses (0 where there is none), ``step`` and ``top`` as double."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in SIZES]
        + [(name, ctypes.c_void_p) for name in INPUTS]
        + [("step", ctypes.c_double), ("top", ctypes.c_double)]
        + [(name, ctypes.c_void_p) for name in RESULTS]
    )
