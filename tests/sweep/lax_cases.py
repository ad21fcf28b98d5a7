"""How to call each function of `jax.lax` and `jax.nn`: ``(call, names)``; `x` is (8, 8)."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import linalg

from tests.sweep.data import D, images, integers, positive, probability, regular, unit

KERNEL = D.y.reshape(2, 2, 4, 4)
NHWC = {"padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
NCHW = {"window_strides": (1, 1), "padding": "SAME"}
ROWS = lax.GatherDimensionNumbers((1,), (0,), (0,))
INTO_ROWS = lax.ScatterDimensionNumbers((1,), (0,), (0,))
DOT = (((1,), (0,)), ((), ()))
AXIS = "devices"


def mapped(function, x):  # type: ignore[no-untyped-def]
    """`function` on the one device of a mesh with a named axis."""
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(function, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)(x)


LAX = (
    (
        lambda f, x: f(x),
        """abs asinh atan bessel_i0e bessel_i1e cbrt ceil conj cos cosh cumlogsumexp cummax cummin cumprod cumsum erf
        erfc exp exp2
        expm1 floor is_finite logistic neg round sign sin sinh square stop_gradient tan tanh optimization_barrier""",
    ),
    (lambda f, x: f(positive(x)), "acosh digamma lgamma log log1p reciprocal rsqrt sqrt"),
    (lambda f, x: f(unit(x)), "acos asin atanh erf_inv"),
    (lambda f, x: f(lax.complex(x, D.y)), "imag real"),
    (
        lambda f, x: f(x, D.y),
        "add atan2 complex div dot eq ge gt le lt max min mul ne nextafter rem sub",
    ),
    (lambda f, x: f(positive(x), D.y), "pow"),
    (lambda f, x: f(x, 3), "integer_pow broadcast_to_rank top_k "),
    (lambda f, x: f(x, (2, 1)), "tile"),
    (lambda f, x: f(x, 1, jnp.int32), "argmax argmin"),
    (lambda f, x: f(integers(x)), "bitwise_not clz population_count"),
    (
        lambda f, x: f(integers(x), D.i),
        """bitwise_and bitwise_or bitwise_xor mulhi shift_left shift_right_arithmetic shift_right_logical""",
    ),
    (lambda f, x: f(positive(x), positive(D.y)), "igamma igamma_grad_a igammac random_gamma_grad"),
    (lambda f, x: f(positive(x), positive(D.y), probability(x)), "betainc"),
    (lambda f, x: f(1 + positive(x), positive(D.y)), "zeta"),
    (lambda f, x: f(jnp.ones_like(x), positive(x)), "polygamma"),
    (lambda f, x: f(x, (2,)), "broadcast"),
    (lambda f, x: f(x, (3, 8, 8), (1, 2)), "broadcast_in_dim"),
    (lambda f, x: f(x[:1], x), "broadcast_like"),
    (lambda f, x: f(-1.0, x, 1.0), "clamp"),
    (lambda f, x: f(x, 0, 2), "collapse"),
    (lambda f, x: f([x, D.y], 0), "concatenate"),
    (lambda f, x: f([x, D.y]), "stack"),
    (lambda f, x: f(x), "unstack"),
    (lambda f, x: f(x, (3, 5)), "split"),
    (lambda f, x: f(x, jnp.bfloat16), "convert_element_type"),
    (lambda f, x: f(x, jnp.int32), "bitcast_convert_type"),
    (lambda f, x: f(x, (0,)), "expand_dims rev"),
    (lambda f, x: f(x[None], (0,)), "squeeze"),
    (lambda f, x: f(x, (1, 0)), "transpose"),
    (lambda f, x: f(x, (4, 16)), "reshape"),
    (lambda f, x: f(x, (1, 2), (7, 8)), "slice"),
    (lambda f, x: f(x, 1, 7), "slice_in_dim"),
    (lambda f, x: f(x, 1), "index_in_dim dynamic_index_in_dim"),
    (lambda f, x: f(x, (1, 2), (4, 4)), "dynamic_slice"),
    (lambda f, x: f(x, 1, 4), "dynamic_slice_in_dim"),
    (lambda f, x: f(x, D.y[:2, :2], (1, 2)), "dynamic_update_slice"),
    (lambda f, x: f(x, D.y[:2], 1, 0), "dynamic_update_slice_in_dim"),
    (lambda f, x: f(x, D.v, 1, 0), "dynamic_update_index_in_dim"),
    (lambda f, x: f(x, (D.n,), (0,)), "index_take"),
    (lambda f, x: f(x, 0.0, ((1, 1, 0), (0, 2, 1))), "pad"),
    (lambda f, x: f(x, 5, 2), "reduce_precision"),
    (lambda f, x: f(x > 0, x, D.y), "select_n select"),
    (lambda f, x: f(x), "sort"),
    (lambda f, x: f(x, D.y), "sort_key_val"),
    (lambda f, x: f(x, 3), "approx_max_k approx_min_k"),
    (lambda f, x: f(x, D.n[:3, None], ROWS, (1, 8)), "gather"),
    (
        lambda f, x: f(x, D.n[:3, None], D.y[:3], INTO_ROWS),
        "scatter scatter_add scatter_max scatter_min scatter_mul scatter_sub",
    ),
    (lambda f, x: f(x, D.n[:3, None], jnp.sin, INTO_ROWS, update_shape=(3, 8)), "scatter_apply"),
    (lambda f, x: f(x, (0,)), "reduce_max reduce_min reduce_prod reduce_sum"),
    (lambda f, x: f(x > 0, (0,)), "reduce_and reduce_or reduce_xor"),
    (lambda f, x: f(x, 0.0, lambda a, b: lax.add(a, b), (1,)), "reduce"),
    (lambda f, x: f(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID"), "reduce_window"),
    (lambda f, x: f(jnp.add, x), "associative_scan"),
    (lambda f, x: f(lambda c, r: (c + r, c * r), x[0], x), "scan"),
    (lambda f, x: f(lambda r: r * r.sum(), x), "map"),
    (lambda f, x: f(0, 3, lambda i, a: jnp.tanh(a + i), x), "fori_loop"),
    (lambda f, x: f(lambda a: a[0] < 3, lambda a: (a[0] + 1, jnp.sin(a[1])), (0, x)), "while_loop"),
    (lambda f, x: f(x[0, 0] > 0, jnp.sin, jnp.cos, x), "cond"),
    (lambda f, x: f(integers(x)[0, 0] % 2, [jnp.sin, jnp.cos], x), "switch"),
    (lambda f, x: f(x, cpu=jnp.sin, default=jnp.cos), "platform_dependent"),
    (lambda f, x: f(jnp.sin, name="jaxq8.sine")(x), "composite"),
    (
        lambda f, x: f(lambda a: a**3 - x, x, lambda g, a: jnp.cbrt(x), lambda g, y: y / g(jnp.ones_like(y))),
        "custom_root",
    ),
    (
        lambda f, x: f(lambda v: regular(x) @ v, D.v, lambda mv, b: jnp.linalg.solve(regular(x), b)),
        "custom_linear_solve",
    ),
    (lambda f, x: f(x, "fft", (8,)), "fft"),
    (lambda f, x: f(x, D.y, DOT), "dot_general"),
    (lambda f, x: f(x.reshape(2, 4, 8), D.y.reshape(2, 8, 4)), "batch_matmul"),
    (lambda f, x: f(x, D.y.reshape(2, 8, 4), jnp.array([3, 5], jnp.int32)), "ragged_dot"),
    (
        lambda f, x: f(
            x,
            D.y.reshape(2, 8, 4),
            jnp.array([3, 5], jnp.int32),
            lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0]),
        ),
        "ragged_dot_general",
    ),
    (lambda f, x: f(images(x), KERNEL, (1, 1), **NHWC), "conv_general_dilated"),
    (lambda f, x: f(images(x), KERNEL.transpose(3, 2, 0, 1), **NCHW), "conv"),
    (
        lambda f, x: f(images(x), KERNEL.transpose(3, 2, 0, 1), (1, 1), ((0, 1), (1, 0)), (1, 1), (1, 1)),
        "conv_with_general_padding",
    ),
    (lambda f, x: f(images(x), KERNEL, (2, 2), **NHWC), "conv_transpose"),
    (lambda f, x: f(images(x), (2, 2), (1, 1), "SAME"), "conv_general_dilated_patches"),
    (
        lambda f, x: f(images(x), jnp.tile(D.y.reshape(4, 16, 1, 1), (1, 1, 3, 3)), (1, 1), "VALID", (2, 2)),
        "conv_general_dilated_local",
    ),
    (lambda f, x: mapped(lambda a: f(a, AXIS), x), "pmax pmean pmin psum all_gather "),
    (lambda f, x: mapped(lambda a: f(a, AXIS, tiled=True), x), "psum_scatter"),
    (lambda f, x: mapped(lambda a: f(a, AXIS, 0, 0, tiled=True), x), "all_to_all"),
    (lambda f, x: mapped(lambda a: f(a, AXIS, [(0, 0)]), x), "ppermute"),
    (lambda f, x: mapped(lambda a: f(a, AXIS, [0]), x), "pshuffle"),
    (lambda f, x: mapped(lambda a: f(a[:1], AXIS, 0), x), "pswapaxes"),
    (lambda f, x: mapped(lambda a: a + f(AXIS), x), "axis_index axis_size"),
    (lambda f, x: x + f((8, 8), 2.0), "full"),
    (lambda f, x: x + f(jnp.float32, (8, 8), 0), "broadcasted_iota"),
    (lambda f, x: f(x, 2.0), "full_like"),
)

LINALG = (
    (lambda f, x: f(regular(x)), "cholesky eigh hessenberg lu qdwh qr schur svd"),
    (lambda f, x: jnp.sort(jnp.abs(f(regular(x))[0])), "eig"),
    (lambda f, x: f(linalg.cholesky(regular(x)), x[0]), "cholesky_update"),
    (lambda f, x: f(*linalg.hessenberg(regular(x))), "householder_product"),
    (lambda f, x: f(*linalg.hessenberg(regular(x)), D.y), "ormqr"),
    (lambda f, x: f(linalg.lu(regular(x))[1], 8), "lu_pivots_to_permutation"),
    (lambda f, x: f(x, D.y), "symmetric_product"),
    (lambda f, x: f(regular(x), D.y), "triangular_solve"),
    (lambda f, x: f(regular(x)), "tridiagonal"),
    (lambda f, x: f(D.v.at[0].set(0), 4 + positive(x[0]), D.v.at[-1].set(0), D.y), "tridiagonal_solve"),
)

NN = (
    (
        lambda f, x: f(x),
        """celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log_sigmoid log_softmax
        logmeanexp logsumexp mish relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus
        standardize swish tanh""",
    ),
    (lambda f, x: f(positive(x)), "log1mexp"),
    (lambda f, x: f(integers(x), 8), "one_hot"),
    (
        lambda f, x: f(x.reshape(1, 4, 2, 8), D.y.reshape(1, 4, 2, 8), D.y[::-1].reshape(1, 4, 2, 8)),
        "dot_product_attention",
    ),
)
