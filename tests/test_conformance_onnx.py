"""The ONNX backend's node tests for the eight-bit operations, run through this library's own functions.

Every case is compared exactly, dtype included. Cases of types that this library has no codes for are listed
in `OTHER_TYPES`; `test_every_case_is_run_or_listed` keeps that list and the number of cases that run honest.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxq8 as q8
from jaxq8.numerics.qtensor import encode
from jaxq8.numerics.rounding import get_rounding

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # building the cases of other operations overflows on purpose
    from onnx.backend.test.loader import load_model_tests

OPERATIONS = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul",
    "QLinearConv",
)  # fmt: skip
UINT8_ZERO = np.uint8(0)  # where a case gives no zero point
OTHER_TYPES = {
    "16 bits": ["dequantizelinear_int16", "dequantizelinear_uint16", "quantizelinear_int16", "quantizelinear_uint16"],
    "below 8 bits, packed": [
        "dequantizelinear_int2", "dequantizelinear_int4", "dequantizelinear_uint2", "dequantizelinear_uint4",
        "quantizelinear_int2", "quantizelinear_int4", "quantizelinear_uint2", "quantizelinear_uint4",
    ],
    "small floats": [
        "dequantizelinear_e4m3fn", "dequantizelinear_e4m3fn_float16", "dequantizelinear_e4m3fn_zero_point",
        "dequantizelinear_e5m2", "dequantizelinear_float4e2m1", "quantizelinear_e4m3fn", "quantizelinear_e5m2",
        "quantizelinear_float4e2m1",
    ],
    "16 bits, blocked": ["quantizelinear_blocked_symmetric"],
}  # fmt: skip
SKIPPED = sorted(name for names in OTHER_TYPES.values() for name in names)


@functools.cache
def cases() -> dict[str, Any]:
    """Name -> test case, of all node tests that use one of the operations or are its expansion into float operations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = load_model_tests(kind="node")
    prefixes = tuple(f"test_{op.lower()}" for op in OPERATIONS)
    return {case.name.removeprefix("test_"): case for case in every if case.name.startswith(prefixes)}


def runnable() -> list[str]:
    return sorted(set(cases()) - set(SKIPPED))


# --- The operations in terms of this library


def parameter(value: Any, x: Any, axis: int) -> Any:
    """A scale or zero point in the rank of x: one number, one per index of an axis, or one per block of it."""
    value = np.asarray(value)
    if value.size == 1:
        return value.reshape((1,) * x.ndim)
    if value.ndim == x.ndim:
        return np.repeat(value, x.shape[axis] // value.shape[axis], axis)
    return value.reshape([-1 if a == axis else 1 for a in range(x.ndim)])


def tensor(codes: Any, scale: Any, zero_point: Any, axis: int = 1) -> q8.QTensor:
    """ONNX's triple as a QTensor."""
    scale, zero = parameter(scale, codes, axis), parameter(zero_point, codes, axis).astype(np.int32)
    dtype = np.asarray(scale).dtype
    zero = np.broadcast_to(zero, scale.shape)
    return q8.QTensor(codes, scale.astype(np.float32), zero, dtype=dtype)


def codes_of(x: Any, scale: Any, zero_point: Any, axis: int = 1) -> Any:
    """saturate(round_half_even(x / scale) + zero_point)."""
    zero_point = np.asarray(zero_point)
    spec = q8.Spec(signed=zero_point.dtype == np.int8)
    zero = jnp.asarray(parameter(zero_point, x, axis).astype(np.int32))
    return encode(
        jnp.asarray(x), jnp.asarray(parameter(scale, x, axis)), zero, spec, get_rounding("half_even")
    )


def quantize_linear(
    attributes: dict[str, Any], x: Any, scale: Any, zero_point: Any = UINT8_ZERO
) -> list[Any]:
    return [codes_of(x, scale, zero_point, attributes.get("axis", 1))]


def dequantize_linear(
    attributes: dict[str, Any], codes: Any, scale: Any, zero_point: Any = UINT8_ZERO
) -> list[Any]:
    return [tensor(codes, scale, zero_point, attributes.get("axis", 1)).dequantize()]


def dynamic_quantize_linear(attributes: dict[str, Any], x: Any) -> list[Any]:
    q = q8.QTensor.from_float(x)
    return [q.values, q.scale.reshape(()), q.zero_point.reshape(()).astype(jnp.uint8)]


def eight_bit(function: Callable[..., Any], x: q8.QTensor, w: q8.QTensor) -> Any:
    """The float result of an operation that the plan says ran on these very codes."""
    config = q8.Config(kernels="xla", weights=q8.Spec(signed=w.signed), attention=True)
    (site,) = q8.explain(function, x, w, config=config).sites
    assert site.eight_bit, site
    return jax.jit(q8.quantize(function, config))(x, w)


def integers(
    function: Callable[..., Any], x: Any, w: Any, x_zero: Any, w_zero: Any, w_axis: int
) -> list[Any]:
    """An operation on integers: with scale 1, real numbers are the differences to the zero point."""
    result = eight_bit(
        function,
        tensor(x, np.float32(1), x_zero),
        tensor(w, np.ones_like(w_zero, np.float32), w_zero, w_axis),
    )
    assert np.abs(result).max() < 2**24  # so float32 results are exact
    return [result.astype(jnp.int32)]


def matmul_integer(attributes: dict[str, Any], a: Any, b: Any, a_zero: Any, b_zero: Any) -> list[Any]:
    return integers(jnp.matmul, a, b, a_zero, b_zero, 1)


def convolution(attributes: dict[str, Any], rank: int) -> Callable[..., Any]:
    """ONNX's convolution of these attributes: channels first, begins of all pads before their ends."""
    pads = attributes.get("pads", [0] * 2 * rank)
    return lambda x, w: lax.conv_general_dilated(
        x, w, attributes.get("strides", [1] * rank), list(zip(pads[:rank], pads[rank:], strict=True)),
        rhs_dilation=attributes.get("dilations"), feature_group_count=attributes.get("group", 1),
    )  # fmt: skip


def conv_integer(
    attributes: dict[str, Any], x: Any, w: Any, x_zero: Any, w_zero: Any = UINT8_ZERO
) -> list[Any]:
    return integers(convolution(attributes, x.ndim - 2), x, w, x_zero, np.asarray(w_zero), 0)


def qlinear_matmul(attributes: dict[str, Any], *operands: Any) -> list[Any]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = operands
    real = eight_bit(
        jnp.matmul, *(tensor(*t) for t in ((a, f32(a_scale), a_zero), (b, f32(b_scale), b_zero)))
    )
    return [codes_of(real, f32(y_scale), y_zero)]


def qlinear_conv(attributes: dict[str, Any], *operands: Any) -> list[Any]:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = operands
    function = convolution(attributes, x.ndim - 2)
    return [
        codes_of(
            eight_bit(function, tensor(x, x_scale, x_zero), tensor(w, w_scale, w_zero, 0)), y_scale, y_zero
        )
    ]


def f32(scale: Any) -> Any:
    """float16 scales, which float32 holds exactly: the operation's results are integers, whatever they were computed in."""
    return np.asarray(scale, np.float32)


RUN: dict[str, Callable[..., list[Any]]] = dict(
    zip(
        (op.lower() for op in OPERATIONS),
        (
            quantize_linear, dequantize_linear, dynamic_quantize_linear, matmul_integer, conv_integer, qlinear_matmul,
            qlinear_conv,
        ),
        strict=True,
    )
)  # fmt: skip


# --- Tests


def attributes_of(case: Any) -> dict[str, Any]:
    nodes = case.model.graph.node
    return {a.name: list(a.ints) or a.i for a in nodes[0].attribute} if len(nodes) == 1 else {}


def same(actual: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(actual) == len(expected)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", runnable())
def test_node(name: str) -> None:
    case = cases()[name]
    run = RUN[name.split("_")[0]]
    for inputs, outputs in case.data_sets:
        same(run(attributes_of(case), *inputs), outputs)


def test_every_case_is_run_or_listed() -> None:
    assert set(SKIPPED) <= set(cases())
    assert len(runnable()) == 24
    assert len(SKIPPED) == 21


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_cases_are_of_other_types(name: str) -> None:
    ours = {1, 2, 3, 6, 10}  # float32, uint8, int8, int32, float16 in onnx.TensorProto
    graph = cases()[name].model.graph
    types = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert types - ours
