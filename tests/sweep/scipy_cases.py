"""How to call each function of `jax.scipy` and its submodules: ``(call, names)``; `x` is (8, 8)."""

import jax.numpy as jnp
from jax.scipy import linalg, signal
from jax.scipy.spatial.transform import Rotation

from tests.sweep.data import D, integers, positive, probability, regular, unit

SPECIAL = (
    (
        lambda f, x: f(x),
        """dawsn erf erfc erfcx expi expit fresnel gammasgn i0 i0e i1 i1e log_ndtr log_softmax logsumexp ndtr
        sici entr softmax wofz""",
    ),
    (lambda f, x: f(positive(x)), "digamma gamma gammaln loggamma exp1 factorial spence"),
    (lambda f, x: f(unit(x)), "erfinv"),
    (lambda f, x: f(probability(x)), "logit ndtri"),
    (
        lambda f, x: f(positive(x), positive(D.y)),
        "beta betaln boxcox boxcox1p gammainc gammaincc kl_div rel_entr xlog1py xlogy poch",
    ),
    (lambda f, x: f(positive(x), positive(D.y), probability(x)), "betainc hyp1f1"),
    (lambda f, x: f(positive(x) + 1, positive(D.y)), "zeta comb"),
    (lambda f, x: f(2, positive(x)), "expn polygamma"),
    (lambda f, x: f(positive(x) + 2, 2), "multigammaln"),
    (lambda f, x: f(1.5, 2.5, 3.5, probability(x)), "hyp2f1"),
    (lambda f, x: f(x, D.y), "owens_t"),
    (lambda f, x: f(positive(x), v=3), "bessel_jn"),
    (lambda f, x: x * f(7), "bernoulli"),
)

LINALG = (
    (
        lambda f, x: f(regular(x)),
        "cho_factor cholesky det eigh hessenberg inv lu lu_factor polar qr schur sqrtm svd",
    ),
    (lambda f, x: f(x, D.y), "block_diag"),
    (lambda f, x: f((linalg.cholesky(regular(x)), False), D.v), "cho_solve"),
    (lambda f, x: f(x[0]), "circulant companion fiedler fiedler_companion hankel toeplitz"),
    (lambda f, x: f(x[0], 4), "convolution_matrix"),
    (lambda f, x: x * f(8), "dft hadamard hilbert"),
    (lambda f, x: x[:4, :4] * f(4), "invhilbert invpascal pascal"),
    (lambda f, x: x[:7] * f(8), "helmert"),
    (lambda f, x: f(x[0], D.v[:7], eigvals_only=True), "eigh_tridiagonal"),
    # Of a matrix of norm one and below: a larger one's exponential multiplies every error by the exponential of its norm.
    (lambda f, x: f(x / 8), "expm"),
    (lambda f, x: f(x / 8, D.y), "expm_frechet"),
    (lambda f, x: f(regular(x), jnp.sin, disp=False)[0], "funm"),
    (lambda f, x: f(x[0], x[0, :7]), "leslie"),
    (lambda f, x: f(linalg.lu_factor(regular(x)), D.v), "lu_solve"),
    (lambda f, x: f(regular(x), D.y), "qr_multiply"),
    (lambda f, x: f(*linalg.schur(regular(x))), "rsf2csf"),
    (lambda f, x: f(regular(x), D.v), "solve solve_triangular"),
    (lambda f, x: f(regular(x), regular(D.y), x), "solve_sylvester"),
)

SIGNAL = (
    (lambda f, x: f(x[0], D.v), "convolve correlate"),
    (lambda f, x: f(x, D.y[:3, :3]), "convolve2d correlate2d fftconvolve"),
    (lambda f, x: f(x.ravel(), D.y.ravel(), nperseg=16), "csd"),
    (lambda f, x: f(x), "detrend"),
    (lambda f, x: f(x.ravel(), nperseg=16), "stft welch"),
    (lambda f, x: f(signal.stft(x.ravel(), nperseg=16)[2], nperseg=16), "istft"),
)


def _of(distributions: str, functions: str) -> str:
    """``norm.pdf``, ...: every function of every distribution."""
    return " ".join(f"{d}.{f}" for d in distributions.split() for f in functions.split())


STATS = (
    (lambda f, x: f(x), _of("norm cauchy gumbel_l gumbel_r", "cdf logcdf logpdf logsf pdf sf")),
    (lambda f, x: f(x), _of("laplace", "cdf logpdf pdf") + " " + _of("logistic", "cdf logpdf pdf sf")),
    (lambda f, x: f(x), _of("uniform", "cdf logpdf pdf")),
    (lambda f, x: f(probability(x)), _of("norm cauchy logistic", "isf ppf")),
    (lambda f, x: f(probability(x)), _of("gumbel_l gumbel_r expon uniform", "ppf")),
    (lambda f, x: f(positive(x)), _of("expon", "cdf logcdf logpdf logsf pdf sf")),
    (lambda f, x: f(positive(x), positive(D.y)), _of("chi2 gamma", "cdf logcdf logpdf logsf pdf sf")),
    (lambda f, x: f(positive(x) + 1, positive(D.y)), _of("pareto", "cdf logcdf logpdf logsf pdf sf")),
    (lambda f, x: f(probability(x), positive(D.y)), _of("pareto", "ppf")),
    (
        lambda f, x: f(probability(x), positive(D.y), positive(D.y.T)),
        _of("beta", "cdf logcdf logpdf logsf pdf sf"),
    ),
    (
        lambda f, x: f(x, positive(D.y)),
        _of("t vonmises", "logpdf pdf") + " " + _of("gennorm", "cdf logpdf pdf"),
    ),
    (lambda f, x: f(x, -2.0, 2.0), _of("truncnorm", "cdf logcdf logpdf logsf pdf sf")),
    (lambda f, x: f(positive(x), probability(D.y)), _of("wrapcauchy", "logpdf pdf")),
    (lambda f, x: f(integers(x) % 2, probability(D.y)), _of("bernoulli", "cdf logpmf pmf")),
    (lambda f, x: f(probability(x), probability(D.y)), _of("bernoulli", "ppf")),
    (lambda f, x: f(integers(x), 9, positive(D.y), positive(x)), _of("betabinom", "logpmf pmf")),
    (lambda f, x: f(integers(x), 9, probability(D.y)), _of("binom nbinom", "logpmf pmf")),
    (lambda f, x: f(integers(x) + 1, probability(x)), _of("geom", "logpmf pmf")),
    (lambda f, x: f(integers(x), positive(x)), _of("poisson", "cdf logpmf pmf")),
    (lambda f, x: f(positive(x)), "poisson.entropy"),
    (lambda f, x: f(D.n, 28, probability(x[0]) / probability(x[0]).sum()), _of("multinomial", "logpmf pmf")),
    (lambda f, x: f(x, D.v, regular(x)), _of("multivariate_normal", "logpdf pdf")),
    (lambda f, x: f(positive(x[0]) / positive(x[0]).sum(), positive(D.v)), _of("dirichlet", "logpdf pdf")),
    (lambda f, x: f(x[:2]).evaluate(D.y[:2]), "gaussian_kde"),
    (lambda f, x: f(integers(x)), "mode"),
    (lambda f, x: f(x), "rankdata sem"),
)

# Submodules with few functions each, together.
SMALL = "ndimage integrate fft interpolate spatial.transform cluster.vq optimize sparse.linalg"
OTHERS = (
    (lambda f, x: f(x), "fft.dct fft.dctn fft.idct fft.idctn integrate.trapezoid"),
    (lambda f, x: f(x, [positive(D.y), positive(D.y.T)], order=1), "ndimage.map_coordinates"),
    (
        lambda f, x: f((D.n * 1.0, D.n * 1.0), x)(positive(D.y[:, :2])),
        "interpolate.RegularGridInterpolator",
    ),
    (lambda f, x: f.from_quat(x[:, :4]).apply(D.y[:, :3]), "spatial.transform.Rotation"),
    (
        lambda f, x: f.init(jnp.arange(8.0), Rotation.from_quat(x[:, :4]))(positive(D.v)).as_matrix(),
        "spatial.transform.Slerp",
    ),
    (lambda f, x: f(x, D.y), "cluster.vq.vq"),
    (
        lambda f, x: f(lambda v: ((v - x[0]) ** 2).sum(), jnp.zeros(8), method="BFGS").x,
        "optimize.minimize",
    ),
    (lambda f, x: f(regular(x), D.v)[0], "sparse.linalg.bicgstab sparse.linalg.cg sparse.linalg.gmres"),
)
