"""The argument struct of the C kernels, field by field as in ``attention.h``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn.functional import pad

MULTIPLE = 16
"""Head dimensions are padded with zeros to a multiple of this."""


class Unavailable(RuntimeError):
    """There is no native kernel on this machine."""


def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return memory for a kernel's results, whatever the process takes by default."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def padded(x: Tensor, width: int) -> Tensor:
    """Return a contiguous tensor whose last axis is padded to whole vectors."""
    return (x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1]))).contiguous()


def check(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """Compare shape, type and device of a tensor."""
    if x.shape != shape or x.dtype != dtype or x.device.type != "cpu":
        raise ValueError(
            f"{name}: expected {dtype} of shape {tuple(shape)} on the CPU, received {x.dtype} of "
            f"{tuple(x.shape)} on {x.device}"
        )


SIZES = (
    "count", "heads", "queries", "keys", "width", "dims", "window", "slots", "query_start", "key_start", "threads",
    "images_k", "images_v", "images_dk", "images_dv", "codes",
)  # fmt: skip
INPUTS = (
    "query", "key", "value", "weight_k", "weight_v", "constant_k", "constant_v", "score_offset", "score_sigma",
    "score_start", "charge_noise", "charge_start", "jitter_start", "readout_start", "pool", "gain", "offset", "errors",
    "query_code", "key_code", "value_code", "aged_k", "aged_v",
)  # fmt: skip
NUMBERS = ("step", "top", "grid", "jitter", "readout_noise")
RESULTS = (
    "out", "saturated", "grad", "slope_key", "slope_value", "slope_weight_k", "slope_weight_v", "slope_constant_k",
    "slope_constant_v", "aged_dk", "aged_dv", "grad_query", "grad_key", "grad_value", "position",
)  # fmt: skip


class Arguments(ctypes.Structure):
    """Sizes as int64, tensors as addresses (0 where there is none), numbers as double."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in SIZES]
        + [(name, ctypes.c_void_p) for name in INPUTS]
        + [(name, ctypes.c_double) for name in NUMBERS]
        + [(name, ctypes.c_void_p) for name in RESULTS]
    )


class AgedCells(ctypes.Structure):
    """Cells of one array that fade at paces of their own."""

    _fields_ = [
        ("states", ctypes.c_void_p), ("rate", ctypes.c_void_p), ("coefficient", ctypes.c_void_p * 4),
        ("ages", ctypes.c_void_p), ("counts", ctypes.c_void_p), ("weights", ctypes.c_void_p),
        ("each", ctypes.c_int64 * 4), *((name, ctypes.c_int64) for name in ("degree", "nodes", "length", "unit")),
        ("v_scale", ctypes.c_double),
    ]  # fmt: skip


class Converter(ctypes.Structure):
    """A converter of queries, keys or values."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "dims", "width")),
        ("strides", ctypes.c_int64 * 3),
        *((name, ctypes.c_double) for name in ("low", "high", "step", "top")),
        ("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("centred", ctypes.c_int64),
    ]  # fmt: skip


RING_SIZES = ("batch", "heads", "kv_heads", "dims", "width", "window", "slots", "padded", "position")
RING_TENSORS = ("keys", "values", "weight_k", "weight_v", "query", "key", "value", "out")
RING_NUMBERS = ("query_step", "query_top", "low", "high", "step", "cell_top", "readout_step", "top", "grid")


class Ring(ctypes.Structure):
    """The cells of one layer in codes, and one token of each sequence."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in RING_SIZES]
        + [(name, ctypes.c_void_p) for name in RING_TENSORS]
        + [(name, ctypes.c_double) for name in RING_NUMBERS]
    )


ARRAY_SIZES = ("tokens", "inputs", "outputs", "rows", "tiles", "groups", "cycles", "threads")


class LinearArrays(ctypes.Structure):
    """Weights of one matrix on arrays that take their inputs in digits."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ARRAY_SIZES]
        + [(name, ctypes.c_void_p) for name in ("x", "codes", "errors", "whole", "pool", "places", "out")]
        + [(name, ctypes.c_double) for name in ("units", "inverse", "noise", "top")]
    )
