"""`QTensor`: eight-bit codes that stand for real numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import stored
from jaxq8.errors import TensorError
from jaxq8.numerics.qtensor_html import qtensor_fragment
from jaxq8.numerics.ranges import Range
from jaxq8.numerics.rounding import Rounding, RoundingFunction, get_rounding
from jaxq8.numerics.scales import affine, in_steps, step
from jaxq8.numerics.spec import Spec


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class QTensor:
    """An array of codes with the scale and zero point that say which real numbers the codes stand for.

    The invariants (`validate` checks those of shapes and dtypes)::

        real = scale * (values - zero_point)
        scale.ndim == zero_point.ndim == values.ndim
        values.shape[i] % scale.shape[i] == 0       # scale.shape[i] is 1 where axis i shares a scale, values.shape[i] where
                                                    # each element has its own, else the number of groups of neighbours
        zero_point.shape == scale.shape
        values.dtype == int8 | uint8 | int32        # float while simulated
        scale > 0

    A QTensor is a pytree of three arrays: it can be passed to `jax.jit`, sharded, saved and donated like any array.

    Attributes:
      values: Codes.
      scale: Float32, the size of one step.
      zero_point: Int32, the code of 0.0.
      bits: Width of a code (static).
      symmetric: Whether the zero point is known to be 0 (static).
      dtype: The float dtype that the tensor stands for (static).
      signed: Whether codes are signed (static). None means that of the dtype of integer codes; simulated codes, which are
        float32, count as signed unless this is given.

    Example:
      >>> x = q8.QTensor.from_float(jnp.float32([-1.0, 0.0, 0.25, 1.0]), q8.Spec(symmetric=True))
      >>> x.values
      Array([-127,    0,   32,  127], dtype=int8)
      >>> x
      QTensor(4, 8 bits signed, range -1..1, stands for float32)
    """

    values: Any
    scale: Any
    zero_point: Any
    bits: int = 8
    symmetric: bool = False
    dtype: Any = np.dtype("float32")
    signed: bool | None = None

    def __post_init__(self) -> None:
        if self.signed is None and hasattr(self.values, "dtype"):
            unsigned = jnp.issubdtype(self.values.dtype, jnp.unsignedinteger)
            object.__setattr__(self, "signed", not unsigned)

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        fields = ("values", "scale", "zero_point")
        return tuple((jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in fields), self._static

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.values, self.scale, self.zero_point), self._static

    @property
    def _static(self) -> tuple[Any, ...]:
        return self.bits, self.symmetric, self.dtype, self.signed

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> QTensor:
        return cls(*children, *static)

    @classmethod
    def from_float(
        cls,
        x: Any,
        spec: Spec | None = None,
        *,
        axis: int | tuple[int, ...] | None = None,
        rounding: str | Rounding | RoundingFunction = "half_even",
        key: jax.Array | None = None,
    ) -> QTensor:
        """Encodes a float array.

        Args:
          x: Float array of any shape; it may be empty.
          spec: Representation; default `Spec()`: eight bits, unsigned, asymmetric, one scale.
          axis: Axes that keep scales of their own; default: none for "tensor", the last for "channel", all but the last
            for "row".
          rounding: Rounding scheme, by name or as a function.
          key: PRNG key for schemes that draw random numbers.

        Returns:
          A QTensor of the same shape. With rounding to nearest, an element in the range is at most half a step off.

        Raises:
          TensorError: `x` is not a float array, `axis` is not one of its axes, or (outside jit) `x` holds NaN or infinity.
            Inside jit the scale becomes NaN instead, and so does every number that is decoded with it.
          SpecError: The rounding scheme needs `key`, or is unknown.

        Example:
          >>> q8.QTensor.from_float(jnp.array([-10.0, 0.0, 30.0])).values
          Array([  0,  64, 255], dtype=uint8)
        """
        spec = spec or Spec()
        x = _float_array(x)
        _check_finite(x, "QTensor.from_float")
        wide = x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)
        keep = kept_axes(x.ndim, spec, axis)
        if spec.granularity == "group":
            return cls._grouped(x, spec, keep, rounding, key)
        minimum, maximum = extremes(wide, keep, spec.range)
        scheme = get_rounding(rounding)
        scale, zero_point = affine(minimum, maximum, spec, scheme)
        if isinstance(scale, jax.core.Tracer):
            # Otherwise XLA computes the scale from the range again for each element of the weight.
            scale = stored(scale)
        if isinstance(spec.range, Range):
            # A fixed range does not depend on the data, so NaN and infinity have to be looked for.
            scale = jnp.where(jnp.isfinite(wide).all(), scale, jnp.nan)
        per_unit = step(minimum, maximum, spec)[1] if scheme.by_range else None
        values = encode(wide, scale, zero_point, spec, scheme, key, per_unit)
        return cls(values, scale, zero_point, spec.bits, spec.is_symmetric, np.dtype(x.dtype))

    @classmethod
    def _grouped(cls, x: jax.Array, spec: Spec, keep: tuple[int, ...], rounding: Any, key: Any) -> QTensor:
        """Encodes with groups as an axis of their own, and returns codes and scales in the rank of `x`."""
        shape, kept = split_groups(x.shape, keep, spec)
        plain = dataclasses.replace(spec, granularity="channel", group=0)
        q = cls.from_float(x.reshape(shape), plain, axis=kept, rounding=rounding, key=key)
        small = joined_groups(q.scale.shape, x.shape, shape)
        scale, zero_point = q.scale.reshape(small), q.zero_point.reshape(small)
        return dataclasses.replace(q, values=q.values.reshape(x.shape), scale=scale, zero_point=zero_point)

    @classmethod
    def from_codes(
        cls, codes: Any, range: Range, spec: Spec | None = None, *, rounding: str | Rounding = "half_even",
        dtype: Any = np.float32,
    ) -> QTensor:  # fmt: skip
        """Wraps codes that are described by a range, as in 2016: the smallest code is its minimum, the largest its maximum.

        Args:
          codes: Integer array of the spec's storage dtype.
          range: Real values of the smallest and largest code.
          spec: Representation; default `Spec()`. Its own range is ignored.
          rounding: How the minimum is rounded to the grid.
          dtype: Float dtype that the tensor stands for.

        Raises:
          TensorError: The codes are of another dtype.

        Example:
          >>> q8.QTensor.from_codes(np.uint8([0, 128, 255]), q8.Range(-3, 6))
          QTensor(3, 8 bits unsigned, range -3..6, stands for float32)
        """
        spec = spec or Spec()
        codes = jnp.asarray(codes)
        if codes.dtype != spec.storage:
            raise TensorError(f"QTensor.from_codes: {spec} has {spec.storage} codes, got {describe(codes)}")
        low, high = (jnp.full((1,) * codes.ndim, end, jnp.float32) for end in range)
        scale, zero_point = affine(low, high, spec, get_rounding(rounding))
        return cls(codes, scale, zero_point, spec.bits, spec.is_symmetric, np.dtype(dtype))

    @classmethod
    def from_uint8(
        cls, image: Any, scale: Any = 1.0, zero_point: Any = 0, dtype: Any = np.float32
    ) -> QTensor:
        """Wraps bytes that are codes already, such as a decoded RGB photo, without a pass over the data.

        Args:
          image: uint8 array.
          scale: Real size of one step: a scalar, or an array that broadcasts to the image.
          zero_point: The byte that stands for 0.0, an integer 0..255.
          dtype: Float dtype that the tensor stands for.

        Raises:
          TensorError: `image` is not uint8, or `scale` or `zero_point` has the wrong shape or value.

        Example:
          >>> photo = np.uint8([[0, 127, 255]])
          >>> q8.QTensor.from_uint8(photo, 1 / 128, 127).dequantize()  # (photo - 127) / 128
          Array([[-0.9921875,  0.       ,  1.       ]], dtype=float32)
        """
        if getattr(image, "dtype", None) != np.uint8:
            raise TensorError(f"QTensor.from_uint8: expected a uint8 array, got {describe(image)}")
        _check_parameters(scale, zero_point)
        step_size, zero = jnp.asarray(scale, jnp.float32), jnp.asarray(zero_point, jnp.int32)
        if step_size.ndim == 0:
            step_size = step_size.reshape((1,) * np.ndim(image))
        if zero.ndim == 0:
            zero = jnp.full(step_size.shape, zero)
        result = cls(image, step_size, zero, 8, False, np.dtype(dtype))
        validate(result, "QTensor.from_uint8")
        return result

    def dequantize(self, dtype: Any = None) -> jax.Array:
        """The real numbers, in `dtype` (default: the dtype that the tensor stands for)."""
        wide = jnp.promote_types(self.scale.dtype, jnp.float32)
        centred = self.values.astype(wide) - self.by_element(jnp.asarray(self.zero_point)).astype(wide)
        return (centred * self.by_element(self.scale)).astype(dtype or self.dtype)

    @property
    def is_grouped(self) -> bool:
        """Whether groups of neighbours share scales."""
        return any(s not in (1, n) for s, n in zip(self.scale.shape, self.shape, strict=True))

    def by_element(self, parameter: Any) -> Any:
        """A scale or zero point that broadcasts to the values; one of a group is repeated for its elements."""
        for axis, (n, s) in enumerate(zip(self.shape, parameter.shape, strict=True)):
            parameter = parameter if s in (1, n) else jnp.repeat(parameter, n // s, axis)
        return parameter

    @property
    def spec(self) -> Spec:
        """Bits, sign and symmetry as a `Spec` (granularity is in the shape of `scale`)."""
        return Spec(bits=self.bits, signed=self.signed, symmetric=self.symmetric)

    @property
    def minimum(self) -> jax.Array:
        """Real value of the smallest code, in the shape of `scale`."""
        return self._real(self.spec.qmin)

    @property
    def maximum(self) -> jax.Array:
        """Real value of the largest code, in the shape of `scale`."""
        return self._real(self.spec.qmax)

    def _real(self, code: int) -> jax.Array:
        return (float(code) - jnp.asarray(self.zero_point).astype(self.scale.dtype)) * self.scale

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points together."""
        arrays = (self.values, self.scale, self.zero_point)
        return sum(int(np.prod(np.shape(a), dtype=np.int64)) * np.dtype(a.dtype).itemsize for a in arrays)

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, sizes, and a histogram of the codes where they are known."""
        return qtensor_fragment(self, is_concrete(self.values))

    def __repr__(self) -> str:
        if not hasattr(self.values, "dtype"):
            return f"QTensor({self.values!r}, {self.scale!r}, {self.zero_point!r})"
        sign = "signed" if self.signed else "unsigned"
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"QTensor({shape}, {self.bits} bits {sign}, {_range_text(self)}, stands for {np.dtype(self.dtype).name})"


def kept_axes(ndim: int, spec: Spec, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes that keep scales of their own."""
    if axis is not None:
        named = (axis,) if isinstance(axis, int) else axis
        if any(not -ndim <= a < ndim for a in named):
            raise TensorError(f"axis {axis} does not exist in an array of {ndim} axes")
        return tuple(sorted(a % ndim for a in named))
    if spec.granularity == "tensor" or ndim == 0:
        return ()
    return tuple(range(ndim - 1)) if spec.granularity == "row" else (ndim - 1,)


def split_groups(
    shape: tuple[int, ...], keep: tuple[int, ...], spec: Spec
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape with an additional axis for the members of a group, and the axes of it that keep scales of their own.

    Groups lie along the last axis that is not kept and has a multiple of ``spec.group`` elements. Where there is no such axis
    (a depthwise kernel), and where the granularity is not "group", both are returned as they are.
    """
    if spec.granularity != "group":
        return shape, keep
    axes = [a for a, n in enumerate(shape) if a not in keep and n and n % spec.group == 0]
    if not axes:
        return shape, keep
    axis = axes[-1]
    split = (*shape[:axis], shape[axis] // spec.group, spec.group, *shape[axis + 1 :])
    moved = [a if a < axis else a + 1 for a in keep]
    return split, tuple(sorted([axis, *moved]))


def joined_groups(scales: tuple[int, ...], shape: tuple[int, ...], split: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of scales in the rank of the array, from their shape in the rank of `split_groups`' shape."""
    if shape == split:
        return scales
    axis = next(a for a, (n, s) in enumerate(zip(shape, split, strict=False)) if n != s)
    return (*scales[: axis + 1], *scales[axis + 2 :])


def extremes(
    x: jax.Array, keep: tuple[int, ...], fixed: str | Range = "minmax"
) -> tuple[jax.Array, jax.Array]:
    """Minimum and maximum of `x`, or the ends of a `Range`, for each scale: all axes except `keep` have size 1.

    Where an axis to reduce is empty, both are 0.
    """
    shape = tuple(n if a in keep else 1 for a, n in enumerate(x.shape))
    if isinstance(fixed, Range):
        return jnp.full(shape, fixed.minimum, x.dtype), jnp.full(shape, fixed.maximum, x.dtype)
    reduced = tuple(a for a in range(x.ndim) if a not in keep)
    if any(x.shape[a] == 0 for a in reduced):
        return jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype)
    return jnp.min(x, axis=reduced, keepdims=True), jnp.max(x, axis=reduced, keepdims=True)


def encode(
    x: jax.Array, scale: jax.Array, zero_point: jax.Array, spec: Spec, rounding: Rounding, key: jax.Array | None = None,
    per_unit: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Codes of `x`: ``clip(round(x / scale) + zero_point, qmin, qmax)``; NaN becomes the zero point."""
    steps = in_steps(x, scale, per_unit)
    zero = zero_point.astype(steps.dtype)
    codes = rounding(steps + zero, key) if rounding.joint else rounding(steps, key) + zero
    codes = jnp.where(jnp.isnan(codes), zero, codes)
    return jnp.clip(codes, spec.qmin, spec.qmax).astype(spec.storage)


def validate(q: QTensor, where: str) -> None:
    """Checks the invariants of `QTensor` that depend on shapes and dtypes alone, and reports all violations together.

    Raises:
      TensorError: An invariant is violated; the message names `where` and each violated invariant.
    """
    wrong = []
    if len(q.scale.shape) != q.ndim or len(q.zero_point.shape) != q.ndim:
        wrong.append(
            f"scale {q.scale.shape} and zero_point {q.zero_point.shape} need the {q.ndim} axes of values {q.shape}"
        )
    elif any(s not in (1, n) and (s == 0 or n % s) for s, n in zip(q.scale.shape, q.shape, strict=True)):
        wrong.append(f"scale {q.scale.shape} does not broadcast to values {q.shape}")
    if q.zero_point.shape != q.scale.shape:
        wrong.append(f"zero_point {q.zero_point.shape} differs in shape from scale {q.scale.shape}")
    if np.dtype(q.values.dtype) not in map(np.dtype, ("int8", "uint8", "int32", "float32", "float64")):
        wrong.append(f"values are {q.values.dtype}; expected int8, uint8 or int32 codes")
    if not jnp.issubdtype(q.scale.dtype, jnp.floating):
        wrong.append(f"scale is {q.scale.dtype}; expected a float")
    if wrong:
        raise TensorError(f"{where}: not a valid QTensor: " + "; ".join(wrong))


def is_qtensor(x: Any) -> bool:
    """Whether a leaf is a QTensor; for ``tree_map(..., is_leaf=is_qtensor)``."""
    return isinstance(x, QTensor)


def is_concrete(x: Any) -> bool:
    """Whether the numbers of an array are known now, which they are not while it is traced."""
    if isinstance(x, jax.core.Tracer):
        return False
    return isinstance(x, np.ndarray | np.generic | jax.Array)


def describe(x: Any) -> str:
    """Short text for error messages: dtype and shape of an array, or the type of anything else."""
    return f"{x.dtype}{list(np.shape(x))}" if hasattr(x, "dtype") else type(x).__name__


def _float_array(x: Any) -> jax.Array:
    if isinstance(x, QTensor):
        raise TensorError("QTensor.from_float: the argument is a QTensor already; call .dequantize() first")
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TensorError(
            f"QTensor.from_float: expected a float array, got {describe(array)}; convert it with .astype"
        )
    return array


def _check_parameters(scale: Any, zero_point: Any) -> None:
    """Refuses scales and zero points that are not valid for bytes, where their numbers are known."""
    if not isinstance(scale, jax.core.Tracer) and not np.all(np.isfinite(scale) & (np.asarray(scale) > 0)):
        raise TensorError(f"QTensor.from_uint8: scale must be positive and finite, got {scale}")
    if not isinstance(zero_point, jax.core.Tracer) and not np.isin(zero_point, np.arange(256)).all():
        raise TensorError(f"QTensor.from_uint8: zero_point must be an integer 0..255, got {zero_point}")


def _check_finite(x: Any, where: str) -> None:
    """Refuses NaN and infinity where the numbers are known."""
    if is_concrete(x) and x.size and not np.isfinite(np.asarray(x, np.float64)).all():
        raise TensorError(f"{where}: the array holds NaN or infinity; replace them first (jnp.nan_to_num)")


def _range_text(q: QTensor) -> str:
    if not is_concrete(q.scale):
        return f"scale {list(q.scale.shape)}"
    if not q.scale.size:
        return "no values"
    low, high = float(np.min(q.minimum)), float(np.max(q.maximum))
    scales = "" if q.scale.size == 1 else f" over {q.scale.size} scales"
    return f"range {low:.4g}..{high:.4g}{scales}"
