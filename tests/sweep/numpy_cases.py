"""How to call each function of `jax.numpy`, its submodules, `jax.image` and `jax.ops`: ``(call, names)``; `x` is (8, 8)."""

import jax.numpy as jnp

from tests.sweep.data import D, images, integers, positive, regular, unit

NUMPY = (
    (
        lambda f, x: f(x),
        """abs absolute all amax amin angle any arcsinh asinh arctan atan argmax argmin argsort around array
        asarray atleast_1d atleast_2d atleast_3d average cbrt ceil conj conjugate copy corrcoef cos cosh
        count_nonzero cov cumprod cumsum deg2rad degrees diag diagflat diagonal diff ediff1d empty_like exp exp2 expm1 fabs
        fliplr flipud flip floor frexp i0 imag iscomplex isfinite isinf isnan isneginf isposinf isreal lexsort
        matrix_transpose max mean median min modf nan_to_num nanargmax nanargmin nancumprod nancumsum nanmax nanmean nanmedian
        nanmin nanprod nanstd nansum nanvar negative ones_like positive prod ptp rad2deg radians ravel real rint rot90
        round sign
        signbit sin sinc sinh sort sort_complex spacing square squeeze std sum tan tanh trace trapezoid tril triu trunc unstack
        var zeros_like transpose logical_not gradient""",
    ),
    (lambda f, x: f(positive(x)), "log log10 log1p log2 sqrt arccosh acosh reciprocal"),
    (lambda f, x: f(unit(x)), "arccos acos arcsin asin arctanh atanh"),
    (
        lambda f, x: f(x, D.y),
        """add allclose arctan2 atan2 array_equal array_equiv copysign divide dot equal floor_divide
        fmax fmin fmod greater greater_equal heaviside hypot inner isclose kron less less_equal logaddexp logaddexp2
        logical_and logical_or logical_xor matmul maximum minimum mod multiply nextafter not_equal outer remainder subtract
        tensordot true_divide vdot vecdot append divmod""",
    ),
    (lambda f, x: f(positive(x), D.y), "float_power pow power"),
    (lambda f, x: f(integers(x)), "bitwise_count bitwise_invert bitwise_not invert"),
    (
        lambda f, x: f(integers(x), D.i),
        "bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor gcd lcm left_shift right_shift",
    ),
    (lambda f, x: f(x, integers(x)), "ldexp"),
    (lambda f, x: f(integers(x).ravel(), length=8), "bincount"),
    (lambda f, x: f((x > 0).astype(jnp.uint8)), "packbits"),
    (lambda f, x: f(integers(x).astype(jnp.uint8)), "unpackbits"),
    (lambda f, x: f([x, D.y]), "block column_stack concat concatenate dstack hstack stack vstack"),
    (lambda f, x: f(x, x[:1]), "broadcast_arrays"),
    (lambda f, x: f(x[:1], (8, 8)), "broadcast_to"),
    (lambda f, x: f(x[0], D.v), "convolve correlate polyadd polydiv polymul polysub meshgrid "),
    (lambda f, x: f(x[:, :3], D.y[:, :3]), "cross"),
    (lambda f, x: f(x, D.v), "matvec"),
    (lambda f, x: f(x[0], x), "polyval vecmat"),
    (lambda f, x: f(x, axis=1), "cumulative_prod cumulative_sum"),
    (lambda f, x: f(x, 0), "expand_dims take delete"),
    (lambda f, x: f(x, 2), "array_split hsplit split vsplit repeat tile"),
    (lambda f, x: f(x.reshape(2, 2, 16), 2), "dsplit"),
    (lambda f, x: f(x, 3), "argpartition partition roll pad "),
    (lambda f, x: f(x, 3, 0.5), "insert"),
    (lambda f, x: f(x, 1), "rollaxis"),
    (lambda f, x: f(x, 0, 1), "moveaxis swapaxes"),
    (lambda f, x: f(x, (1, 0)), "permute_dims"),
    (lambda f, x: x[f(D.n[:2], D.n[:3])], "ix_"),
    (lambda f, x: f(x, (4, 16)), "reshape resize"),
    (lambda f, x: f(x, -1, 1), "clip"),
    (lambda f, x: f(x, 2.0), "full_like"),
    (lambda f, x: f(x, jnp.bfloat16), "astype"),
    (lambda f, x: f(x, 30), "percentile nanpercentile"),
    (lambda f, x: f(x, 0.3), "quantile nanquantile"),
    (lambda f, x: f(x > 0, x, D.y), "where"),
    (lambda f, x: f([x > 0, x < -1], [x, D.y]), "select "),
    (lambda f, x: f(x, [x > 0, x < -1], [1.0, 2.0]), "piecewise"),
    (lambda f, x: f(D.i, [x] * 8, mode="clip"), "choose"),
    (lambda f, x: f(D.i, x[0]), "isin "),
    (lambda f, x: f(x, jnp.sort(D.v)), "digitize"),
    (lambda f, x: f(jnp.sort(D.v), x), "searchsorted"),
    (lambda f, x: f(x, jnp.sort(D.v), D.y[0]), "interp"),
    (lambda f, x: f(x, D.i, axis=1), "take_along_axis"),
    (lambda f, x: f(x, D.i, 0.5, axis=1, inplace=False), "put_along_axis"),
    (lambda f, x: f(x, D.n, 0.5, inplace=False), "put"),
    (lambda f, x: f(x, x > 0, D.v, inplace=False), "place"),
    (lambda f, x: f(x, 0.5, inplace=False), "fill_diagonal"),
    (lambda f, x: f(x > 0, x, size=5, fill_value=0), "extract "),
    (lambda f, x: f(D.n > 3, x, axis=0, size=4, fill_value=0), "compress"),
    (lambda f, x: f(x > 0, size=5), "argwhere flatnonzero nonzero"),
    (lambda f, x: f(x, size=5), "unique unique_counts unique_inverse unique_all unique_values"),
    (lambda f, x: f(x[0], D.v, size=8), "intersect1d setdiff1d setxor1d union1d"),
    (lambda f, x: f(jnp.sum, 0, x), "apply_along_axis"),
    (lambda f, x: f(jnp.sum, x, (0, 1)), "apply_over_axes"),
    (lambda f, x: f(lambda a: a[0] * a.sum(), signature="(n)->()")(x), "vectorize"),
    (lambda f, x: f(jnp.add, 2, 1)(x, D.y), "frompyfunc"),
    (lambda f, x: f("ij,kj->ik", x, D.y), "einsum"),
    (lambda f, x: f(x[0], x[1], 4), "linspace logspace"),
    (lambda f, x: f(positive(x[0]), positive(x[1]), 4), "geomspace"),
    (lambda f, x: f(x, bins=4), "histogram histogram_bin_edges"),
    (lambda f, x: f(x[0], x[1], bins=4), "histogram2d"),
    (lambda f, x: f(x[:, :2], bins=3), "histogramdd"),
    (lambda f, x: f(D.v, x[0], 2), "polyfit"),
    (lambda f, x: f(x[0]), "poly polyder polyint vander unwrap"),
    (lambda f, x: f(x[0], strip_zeros=False), "roots"),
    (lambda f, x: f(jnp.ix_(D.n[:2], D.n[:3]), (8, 8), mode="clip"), "ravel_multi_index"),
    (lambda f, x: f(integers(x), (2, 4)), "unravel_index"),
    (lambda f, x: f(lambda i, j: (i + j) * x[0, 0], (3, 3)), "fromfunction"),
    (lambda f, x: f((3, 3), x[0, 0]), "full"),
    (lambda f, x: x[f(8)[0], 0] * 2, "diag_indices tril_indices triu_indices"),
    (lambda f, x: x[f(x)[0]], "diag_indices_from tril_indices_from triu_indices_from"),
    (lambda f, x: x * f((8, 8))[0].sum(), "indices"),
    (lambda f, x: x * f(8), "arange bartlett blackman eye hamming hanning identity ones tri zeros empty"),
    (lambda f, x: x * f(8, 2.0), "kaiser"),
    (lambda f, x: x[f(8, jnp.triu, size=36)[0]], "mask_indices"),
)

LINALG = (
    (
        lambda f, x: f(regular(x)),
        "cholesky cond det eigh eigvalsh inv pinv qr slogdet svd svdvals matrix_rank",
    ),
    (lambda f, x: f(x), "diagonal matrix_norm matrix_transpose norm trace vector_norm"),
    (lambda f, x: f(x[:, :3], D.y[:, :3]), "cross"),
    (lambda f, x: f(x, D.y), "matmul tensordot vecdot"),
    (lambda f, x: f(x[0], D.v), "outer"),
    (lambda f, x: f(x / 4, 3), "matrix_power"),
    (lambda f, x: f([x, D.y, D.y.T]), "multi_dot"),
    (lambda f, x: f(regular(x), D.v), "lstsq solve tensorsolve"),
    (lambda f, x: f(regular(x).reshape(4, 2, 8), ind=2), "tensorinv"),
    (lambda f, x: jnp.sort(jnp.abs(f(regular(x))[0])), "eig"),
    (lambda f, x: jnp.sort(jnp.abs(f(regular(x)))), "eigvals"),
)

FFT = (
    (
        lambda f, x: f(x),
        "fft fft2 fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2 irfftn rfft rfft2 rfftn",
    ),
    (lambda f, x: x * f(8), "fftfreq"),
    (lambda f, x: x[:, :5] * f(8), "rfftfreq"),
)

IMAGE = (
    (lambda f, x: f(images(x), (1, 8, 6, 4), "bilinear"), "resize"),
    (
        lambda f, x: f(images(x), (1, 8, 6, 4), (1, 2), D.v[:2] + 3, D.v[2:4], "bilinear"),
        "scale_and_translate",
    ),
)

OPS = ((lambda f, x: f(x, D.n // 2, num_segments=4), "segment_max segment_min segment_prod segment_sum"),)
