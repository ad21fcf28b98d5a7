"""How to build and call each layer of Flax; names of activation functions are swept in `jax.nn`, which they come from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tests.sweep.data import D, images, integers


def rows(x):  # type: ignore[no-untyped-def]
    return x.reshape(2, 4, 8)


def _linen(layer, *arguments, **settings):  # type: ignore[no-untyped-def]
    variables = layer.init({"params": D.key, "dropout": D.key}, *arguments, **settings)
    return layer.apply(variables, *arguments, rngs={"dropout": D.key}, **settings)


LINEN = (
    (lambda f, x: _linen(f(), x), "LayerNorm RMSNorm PReLU"),
    (lambda f, x: _linen(f(6), x), "Dense DenseGeneral"),
    (lambda f, x: _linen(f(num_groups=4), x), "GroupNorm"),
    (lambda f, x: _linen(f(), rows(x)), "InstanceNorm"),
    (lambda f, x: _linen(f(use_running_average=True), x), "BatchNorm"),
    (lambda f, x: _linen(f(6, (3, 3)), images(x)), "Conv ConvLocal ConvTranspose"),
    (lambda f, x: _linen(f(0.5, deterministic=True), x), "Dropout"),
    (lambda f, x: _linen(f((8, 6), "ij,jk->ik"), x), "Einsum"),
    (lambda f, x: x[:, :5] * _linen(f(8, 5), integers(x)[:, 0]), "Embed"),
    (
        lambda f, x: _linen(f(num_heads=2), rows(x)),
        "MultiHeadAttention MultiHeadDotProductAttention SelfAttention",
    ),
    (lambda f, x: _linen(f([nn.Dense(6), jnp.tanh, nn.Dense(3)]), x), "Sequential"),
    (lambda f, x: _linen(f(nn.Dense(6)), x), "WeightNorm"),
    (lambda f, x: f(jnp.sin)(rows(x)), "BatchApply"),
    (lambda f, x: _linen(f(nn.Dense(6)), x, update_stats=False), "SpectralNorm"),
    (
        lambda f, x: _linen(f(6), f(6).initialize_carry(D.key, x.shape), x),
        "GRUCell LSTMCell MGUCell OptimizedLSTMCell SimpleCell",
    ),
    (
        lambda f, x: _linen(f(6, (3, 3)), f(6, (3, 3)).initialize_carry(D.key, (1, 4, 4, 4)), images(x)),
        "ConvLSTMCell",
    ),
    (lambda f, x: _linen(f(nn.GRUCell(6)), rows(x)), "RNN"),
    (lambda f, x: _linen(f(nn.RNN(nn.GRUCell(6)), nn.RNN(nn.LSTMCell(6))), rows(x)), "Bidirectional"),
    (lambda f, x: f(images(x), (2, 2), (2, 2)), "avg_pool max_pool"),
    (lambda f, x: f(images(x), 0.0, jax.lax.add, (2, 2), (2, 2), "SAME"), "pool"),
    (lambda f, x: f(x.reshape(1, 4, 2, 8), D.y.reshape(1, 4, 2, 8)), "dot_product_attention_weights"),
    (lambda f, x: f(*(a.reshape(1, 4, 2, 8) for a in (x, D.y, x))), "dot_product_attention"),
    (lambda f, x: f(x), "normalize"),
    (lambda f, x: x.reshape(1, 1, 8, 8) * f(D.n[None], D.n[None]), "make_attention_mask"),
    (lambda f, x: x.reshape(1, 1, 8, 8) * f(D.n[None]), "make_causal_mask"),
    (lambda f, x: x.reshape(1, 1, 8, 8) * f(nn.make_causal_mask(D.n[None]), None), "combine_masks"),
    (lambda f, x: _linen(f(nn.Dense)(6), x), "checkpoint remat"),
)

NNX = (
    (lambda f, x: f(8, rngs=nnx.Rngs(0))(x), "LayerNorm RMSNorm"),
    (lambda f, x: f()(x), "PReLU"),
    (lambda f, x: f(8, 6, rngs=nnx.Rngs(0))(x), "Linear LinearGeneral"),
    (lambda f, x: f(8, num_groups=4, rngs=nnx.Rngs(0))(x), "GroupNorm"),
    (lambda f, x: f(8, rngs=nnx.Rngs(0))(rows(x)), "InstanceNorm"),
    (lambda f, x: f(8, use_running_average=True, rngs=nnx.Rngs(0))(x), "BatchNorm"),
    (lambda f, x: f(4, 6, (3, 3), rngs=nnx.Rngs(0))(images(x)), "Conv ConvTranspose"),
    (lambda f, x: f(0.5, deterministic=True)(x), "Dropout"),
    (lambda f, x: f("ij,jk->ik", (8, 6), rngs=nnx.Rngs(0))(x), "Einsum"),
    (lambda f, x: x[:, :5] * f(8, 5, rngs=nnx.Rngs(0))(integers(x)[:, 0]), "Embed"),
    (
        lambda f, x: f(num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0))(rows(x)),
        "MultiHeadAttention",
    ),
    (lambda f, x: f(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), jnp.tanh)(x), "Sequential"),
    (lambda f, x: f(8, 2, 6, rngs=nnx.Rngs(0))(x), "LoRA"),
    (lambda f, x: f(8, 6, lora_rank=2, rngs=nnx.Rngs(0))(x), "LoRALinear"),
    (
        lambda f, x: f(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))(x, update_stats=False),
        "SpectralNorm",
    ),
    (lambda f, x: f(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))(x), "WeightNorm"),
    (
        lambda f, x: (c := f(8, 6, rngs=nnx.Rngs(0)))(c.initialize_carry(x.shape, nnx.Rngs(0)), x),
        "GRUCell LSTMCell OptimizedLSTMCell SimpleCell",
    ),
    (lambda f, x: f(nnx.GRUCell(8, 6, rngs=nnx.Rngs(0)))(rows(x)), "RNN"),
    (
        lambda f, x: f(*(nnx.RNN(nnx.GRUCell(8, 6, rngs=nnx.Rngs(i))) for i in range(2)))(rows(x)),
        "Bidirectional",
    ),
    (lambda f, x: f(images(x), (2, 2), (2, 2)), "avg_pool max_pool min_pool"),
    (lambda f, x: f(*(a.reshape(1, 4, 2, 8) for a in (x, D.y, x))), "dot_product_attention"),
    (lambda f, x: f(images(x), 0.0, jax.lax.add, (2, 2), (2, 2), "SAME"), "pool"),
    (lambda f, x: x.reshape(1, 1, 8, 8) * f(D.n[None], D.n[None]), "make_attention_mask"),
    (lambda f, x: x.reshape(1, 1, 8, 8) * f(D.n[None]), "make_causal_mask"),
    (lambda f, x: x.reshape(1, 1, 8, 8) * f(nnx.make_causal_mask(D.n[None]), None), "combine_masks"),
)
