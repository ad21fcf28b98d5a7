"""The methods of learned rounding: to nearest, by chance, GPTQ's error feedback, and AdaRound."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.learning.rounding_problems import FloatArray, RoundingProblem, register_learned_rounding
from jaxq8.numerics.rounding import stochastic

# GPTQ: errors are fed back row by row inside a block of this many rows, and to the rows below only after the whole block.
BLOCK = 64
DAMPING = 0.01  # what GPTQ adds to the diagonal of the Hessian, as a part of its mean diagonal
# AdaRound: the steps of Adam and its learning rate.
STEPS = 400
RATE = 0.05
# Weight of the term that drives decisions to 0 or 1, in units of the error of rounding to nearest.
PENALTY = 0.3
STRETCH = (-0.1, 1.1)  # the rectified sigmoid reaches 0 and 1 at finite arguments


@register_learned_rounding("nearest")
def nearest(problem: RoundingProblem, key: jax.Array) -> FloatArray:
    """Rounds to the nearest code, as `quantize_weights` does."""
    return problem.nearest()


@register_learned_rounding("stochastic")
def by_chance(problem: RoundingProblem, key: jax.Array) -> FloatArray:
    """Rounds up with a probability equal to the fraction (Gupta et al. 2015)."""
    drawn = np.asarray(stochastic(jnp.asarray(problem.steps), key))
    return np.clip(drawn, problem.qmin, problem.qmax)


@register_learned_rounding("gptq")
def gptq(problem: RoundingProblem, key: jax.Array) -> FloatArray:
    """Rounds the weights of one input after the other, and compensates the error in the weights that are not rounded yet.

    After rounding row i, the rows below move by ``-error / U[i, i] * U[i, j]``, where ``U^T U`` is the inverse of the (damped)
    Hessian (Frantar et al. 2022, GPTQ, equations 2 and 3, in the Cholesky form of section 3.3). Inputs with the largest
    second moment come first. A column whose error (by the same quadratic form) would be larger than with rounding to nearest
    keeps the nearest codes, so no output is ever worse.
    """
    order = np.argsort(-np.diagonal(problem.hessian, axis1=1, axis2=2), axis=1, kind="stable")
    back = np.argsort(order, axis=1)
    weight, scale, zero = (
        np.take_along_axis(np.asarray(a, np.float64), order[:, :, None], 1)
        for a in (problem.weight, problem.scale, problem.zero_point)
    )
    upper = _inverse_factor(problem.hessian, order)
    codes = _feed_back(weight, scale, zero, upper, problem.qmin, problem.qmax)
    return _better(problem, np.take_along_axis(codes, back[:, :, None], 1).astype(np.float32))


def _inverse_factor(hessian: FloatArray, order: np.ndarray) -> np.ndarray:
    """Upper triangular U, (g, k, k), with ``U^T U = H^-1`` for the damped Hessian H with its inputs in `order`."""
    h = np.take_along_axis(np.asarray(hessian, np.float64), order[:, :, None], 1)
    h = np.take_along_axis(h, order[:, None, :], 2)
    mean = np.trace(h, axis1=1, axis2=2)[:, None] / h.shape[1]
    eye = np.eye(h.shape[1])
    h = h + np.where(mean > 0, DAMPING * mean, 1)[:, :, None] * eye
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), 1, 2)


def _feed_back(
    weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, upper: np.ndarray, qmin: int, qmax: int
) -> np.ndarray:
    """The codes after rounding row by row with error feedback; changes `weight`."""
    codes = np.empty_like(weight)
    count = weight.shape[1]
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        errors = np.empty_like(weight[:, start:end])
        for i in range(start, end):
            codes[:, i] = np.clip(np.rint(weight[:, i] / scale[:, i] + zero[:, i]), qmin, qmax)
            off = weight[:, i] - (codes[:, i] - zero[:, i]) * scale[:, i]
            errors[:, i - start] = off / upper[:, i, i, None]
            weight[:, i + 1 : end] -= upper[:, i, i + 1 : end, None] * errors[:, None, i - start]
        weight[:, end:] -= np.swapaxes(upper[:, start:end, end:], 1, 2) @ errors
    return codes


def _better(problem: RoundingProblem, codes: FloatArray) -> FloatArray:
    """For each output, the codes with the smaller error: these codes or the nearest ones."""
    plain = problem.nearest()
    worse = problem.error(codes) > problem.error(plain)
    return np.where(worse[:, None], plain, codes)


@register_learned_rounding("adaround")
def adaround(problem: RoundingProblem, key: jax.Array) -> FloatArray:
    """Learns for each weight whether to round up or down, by gradient descent on the layer's own error.

    ``code = floor(w / s) + h(v)`` with the rectified sigmoid ``h``; the loss is the reconstruction error ``d^T H d`` plus a
    penalty ``1 - |2 h - 1|^b`` that drives h to 0 or 1 while b falls from 20 to 2 (Nagel et al. 2020, AdaRound, equations 21
    to 25). The squared error of a layer depends on the calibration data only through the Hessian, so every step uses all of
    the data at the cost of one product with the Hessian. Outputs whose error would be larger than with rounding to nearest
    keep the nearest codes.
    """
    low, high = STRETCH
    below = np.floor(problem.steps)
    inside = np.clip((problem.steps - below - low) / (high - low), 1e-4, 1 - 1e-4)
    start = np.log(inside / (1 - inside)).astype(np.float32)
    size = np.maximum(problem.error(problem.nearest()).mean(), np.finfo(np.float32).tiny)
    arrays = (problem.weight, problem.hessian / size, problem.scale, problem.zero_point, below)
    learned = _learn(start, *map(jnp.asarray, arrays), problem.qmin, problem.qmax)
    up = np.asarray(learned) > 0
    return _better(problem, np.clip(below + up, problem.qmin, problem.qmax).astype(np.float32))


@partial(jax.jit, static_argnums=(6, 7))
def _learn(
    start: Any, weight: Any, hessian: Any, scale: Any, zero: Any, below: Any, qmin: int, qmax: int
) -> jax.Array:
    """The decisions v after learning: a weight is rounded up where v is positive."""
    import optax  # imported here, since running an exported program does not need it

    optimizer = optax.adam(RATE)
    outputs = weight.shape[0] * weight.shape[2]

    def loss(v: jax.Array, sharpness: jax.Array, weigh: jax.Array) -> jax.Array:
        h = jnp.clip(jax.nn.sigmoid(v) * (STRETCH[1] - STRETCH[0]) + STRETCH[0], 0, 1)
        off = (jnp.clip(below + h, qmin, qmax) - zero) * scale - weight
        pull = jax.lax.stop_gradient(hessian @ off)  # the gradient of d^T H d is 2 H d: one product, not two
        penalty = jnp.sum(1 - jnp.abs(2 * h - 1) ** sharpness)
        return jnp.sum(2 * off * pull) / outputs + weigh * PENALTY * penalty / outputs

    def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
        v, state = carry
        done = jnp.maximum(index / STEPS - 0.2, 0) / 0.8  # the first fifth learns without the penalty
        sharpness = 2 + 18 * (1 - done)
        slope = jax.grad(loss)(v, sharpness, jnp.where(done > 0, 1.0, 0.0))
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(v, updates), state), None

    (v, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(STEPS))
    return v
