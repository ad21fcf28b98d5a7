"""Region programs for tests: a builder of their words, what they mean in NumPy, and a packer of weights."""

import itertools
import math

import jax
import numpy as np

from jaxq8.native import calls

MAGIC, VERSION = 0x6A61787138, 3
DTYPES = [np.uint8, np.int8, np.int32, np.float32]
CONTRACT, ELEMENTWISE, COPY, FILL, MAXPOOL, SUMPOOL, REDUCE, PRODUCT, UPDATE, TAKE = range(1, 11)
OPERATIONS = [
    "load", "const", "add", "sub", "mul", "div", "max", "min", "neg", "abs", "exp", "logistic", "tanh", "erf", "sqrt",
    "rsqrt", "store", "encode", "nan_if", "load_int", "store_int", "const_int", "select", "eq", "ne", "lt", "le", "gt", "ge",
    "and", "or", "pow", "int_add", "int_sub", "int_mul", "int_max", "int_min", "round", "floor", "ceil", "sign", "log",
    "log1p", "expm1", "is_finite", "not", "to_int", "to_float",
]  # fmt: skip
PAIRS = frozenset(OPERATIONS[2:8] + OPERATIONS[23:37] + ["nan_if"])
REDUCTIONS = {"sum": np.sum, "max": np.max, "min": np.min}
ARENA = -1
# What the instructions mean in NumPy. Where float32 would round, float64 does not: tests allow for the difference.
MEANINGS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "nan_if": lambda x, y: np.where(np.isnan(x), np.nan, y), "select": lambda x, y, z: np.where(x != 0, y, z),
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "is_finite": np.isfinite, "pow": np.power,
    "int_add": np.add, "int_sub": np.subtract, "int_mul": np.multiply, "int_max": np.maximum, "int_min": np.minimum,
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "logistic": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh,
    "erf": np.vectorize(math.erf), "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "round": np.rint, "floor": np.floor,
    "ceil": np.ceil, "sign": lambda x: np.where(x == 0, x, np.sign(x)), "log": np.log, "log1p": np.log1p,
    "expm1": np.expm1, "to_float": lambda x: x.astype(np.float32),
    "to_int": lambda x: saturated(np.trunc(x.astype(np.float64))),
}  # fmt: skip


def saturated(x):
    """Float64 numbers as int32, and NaN as 0."""
    return np.clip(np.nan_to_num(x, nan=0.0), -(2.0**31), 2.0**31 - 1).astype(np.int64).astype(np.int32)


def bits(number):
    return int(np.float32(number).view(np.uint32))


def dense(dims):
    return [int(np.prod(dims[i + 1 :], dtype=np.int64)) for i in range(len(dims))]


class Program:
    """Collects tensors and steps; `words` are those of the format."""

    def __init__(self, *args, results=(), aliases=()):
        self.args, self.results = list(args), list(results)
        self.aliases = list(aliases)  # (argument, result that begins with it)
        self.tensors, self.steps, self.arena = [], [], 0
        begun = [argument for argument, _ in self.aliases]
        # An argument that a result begins with has no tensor: its number is NONE.
        self.ids = [
            -1 if i in begun else self.tensor(a.dtype, i, a.shape)
            for i, a in enumerate([*args, *self.results])
        ]

    def tensor(self, dtype, place, dims, offset=0, strides=None):
        dims = [int(d) for d in dims]
        code = DTYPES.index(np.dtype(dtype).type)
        strides = dense(dims) if strides is None else strides
        self.tensors.append([code, place, offset, len(dims), *dims, *strides])
        return len(self.tensors) - 1

    def in_arena(self, dtype, dims, strides=None):
        """A tensor of its own in the arena."""
        strides = dense(list(dims)) if strides is None else strides
        place, extent = self.arena, sum((d - 1) * s for d, s in zip(dims, strides, strict=True)) + 1
        self.arena += -(-extent * np.dtype(dtype).itemsize // 64) * 64
        return self.tensor(dtype, ARENA, dims, place, strides)

    def step(self, opcode, *payload):
        self.steps.append([opcode, len(payload), *(int(word) for word in payload)])

    def contract(
        self, src, weights, dst, mult=-1, offset=-1, residual=-1, rescale=-1, lo=-np.inf, hi=np.inf, kind=0, kernel=(),
        strides=(), dilation=(), low=(), high=(), groups=1, problem=None, function=0, shift=-1,
    ):  # fmt: skip
        packed = [] if problem is None else [len(problem), *problem]
        window = [*kernel, *strides, *dilation, *low, *high]
        head = [src, weights, dst, mult, offset, residual, rescale, function, shift, bits(lo), bits(hi)]
        self.step(CONTRACT, *head, kind, len(kernel), *window, groups, *packed)

    def elementwise(self, dims, inputs, outputs, code):
        instructions = [(OPERATIONS.index(op), *[*rest, 0, 0, 0, 0][:4]) for op, *rest in code]
        flat = [word for instruction in instructions for word in instruction]
        self.step(
            ELEMENTWISE, len(dims), *dims, len(inputs), *inputs, len(outputs), *outputs, len(code), *flat
        )

    def reduce(self, kind, src, dst):
        self.step(REDUCE, src, dst, list(REDUCTIONS).index(kind))

    def placed(self, opcode, src, dst, starts):
        self.step(opcode, src, dst, len(starts), *starts)

    def words(self):
        head = [MAGIC, VERSION, len(self.args), len(self.results), self.arena, len(self.aliases)]
        head += [number for pair in self.aliases for number in pair]
        parts = [[*head, len(self.tensors)], *self.tensors, [len(self.steps)], *self.steps]
        return np.array([word for part in parts for word in part], np.int64)


def reduced(kind, x, shape):
    """What a reduction to a shape gives; sums of floats in float64."""
    axes = tuple(i for i, (n, m) in enumerate(zip(x.shape, shape, strict=True)) if n != m)
    if kind == "sum":
        whole = np.issubdtype(x.dtype, np.integer)
        total = x.astype(np.int64 if whole else np.float64).sum(axis=axes, keepdims=True)
        return total.astype(np.int32) if whole else total
    return REDUCTIONS[kind](x, axis=axes, keepdims=True)


def places(size, low, high, window, dilation, stride):
    return (size + low + high - (window - 1) * dilation - 1) // stride + 1


def patches(x, window, strides, dilation, low, high, border):
    """The elements of windows: for each element of the window an array (batch, *out, c)."""
    ns = len(window)
    padded = np.pad(x, [(0, 0), *zip(low, high, strict=True), (0, 0)], constant_values=border)
    out = [places(x.shape[i + 1], low[i], high[i], window[i], dilation[i], strides[i]) for i in range(ns)]
    for index in itertools.product(*map(range, window)):
        pieces = [
            slice(k * d, k * d + (o - 1) * s + 1, s)
            for k, d, o, s in zip(index, dilation, out, strides, strict=True)
        ]
        yield index, padded[(slice(None), *pieces, slice(None))]


def accumulator(x, w, strides=(), dilation=(), low=(), high=(), groups=1):
    """The exact sums of a convolution with weights (*kernel, c_in / groups, c_out), or of a matrix product."""
    w = w.astype(np.float64)  # sums are far below 2**53
    if x.ndim == 2 and not strides:
        return (x.astype(np.float64) @ w).astype(np.int64)
    total, each = 0, w.shape[-1] // groups
    for index, patch in patches(x, w.shape[:-2], strides, dilation, low, high, 0):
        taps = patch.astype(np.float64).reshape(*patch.shape[:-1], groups, -1)
        kernel = w[index].reshape(w.shape[-2], groups, each)
        sums = np.einsum("...gi,igo->...go", taps, kernel, optimize=groups == 1)
        total = total + sums.reshape(*patch.shape[:-1], -1)
    return total.astype(np.int64)


def epilogue(acc, mult, offset, residual=None, rescale=None, lo=-np.inf, hi=np.inf):
    t = acc * mult.astype(np.float64) + offset.astype(np.float64)
    if residual is not None:
        t = t + residual.astype(np.float64)
    if rescale is not None:
        t = t * float(rescale)
    return np.clip(t, lo, hi)


def encoded(t, dtype):
    info = np.iinfo(dtype)
    return np.clip(np.rint(t), info.min, info.max).astype(dtype)


def differing(codes, t):
    """How many codes are not those of the numbers t, but for numbers at a boundary between two codes."""
    expected = encoded(t, codes.dtype).astype(np.int64)
    boundary = np.abs(t - np.floor(t) - 0.5) < 1e-5 * (1 + np.abs(t))
    difference = np.abs(codes.astype(np.int64) - expected)
    return int(np.sum((difference > 1) | ((difference == 1) & ~boundary)))


def problem_of(x, kernel, c_out, strides=(), dilation=(), low=(), high=(), groups=1):
    return [
        len(kernel), x.shape[0], *x.shape[1:-1], x.shape[-1], *kernel, c_out, *strides, *dilation, *low, *high, groups
    ]  # fmt: skip


def packed(w, layout, groups=1, matrix=False):
    """Weights (*kernel, c_in / groups, c_out), or (K, N), in the bytes that a layout tells."""
    if not matrix:
        ns, each = w.ndim - 2, w.shape[-1] // groups
        w = np.moveaxis(w, (-1, -2), (0, 1))
        if groups > 1:
            w = w.reshape(groups, each, *w.shape[1:])
        assert w.ndim == ns + 2 + (groups > 1)
    words = list(layout)
    ndims = words.pop(0)
    dims, padded, strides = (words[i * ndims : (i + 1) * ndims] for i in range(3))
    words = words[3 * ndims :]
    n = words.pop(0)
    blocks, axes, (size,) = words[:n], words[n : 2 * n], words[2 * n :]
    assert list(w.shape) == dims
    where = np.zeros([1] * ndims, np.int64)
    for axis in range(ndims):
        position, offset = np.arange(dims[axis]), np.zeros(dims[axis], np.int64)
        for i in reversed(range(n)):
            if axes[i] == axis:
                offset += position % blocks[i] * int(np.prod(blocks[i + 1 :], dtype=np.int64))
                position = position // blocks[i]
        offset += position * strides[axis]
        where = where + offset.reshape([-1 if i == axis else 1 for i in range(ndims)])
    out = np.zeros(size, np.int8)
    out[where] = w
    assert np.prod(padded) == size
    return out


def run(program, args=None):
    """The results of a program in jax.jit."""
    words, aliases = program.words(), dict(program.aliases)
    shapes = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in program.results]
    out = jax.jit(lambda *a: calls.call(words, a, shapes, aliases))(*(program.args if args is None else args))
    return [np.asarray(o) for o in out]


def codes(rng, shape, dtype):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)
