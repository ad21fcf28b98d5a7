"""Models of keras.applications (JAX backend), haiku, equinox and flaxmodels with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Built = tuple[Callable[..., Any], Any, tuple[Any, ...]]


def _images(size: int = 96, count: int = 1) -> jax.Array:
    small = jax.random.normal(jax.random.key(0), (count, size // 8, size // 8, 3))
    return jax.image.resize(small, (count, size, size, 3), "linear")


def keras_application(name: str) -> Callable[[], Built]:
    """A network of keras.applications at 96 x 96."""

    def build() -> Built:
        import keras

        keras.utils.set_random_seed(0)
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(96, 96, 3), classifier_activation=None
        )
        variables = _with_statistics(model)

        def apply(values: Any, x: Any) -> Any:
            return model.stateless_call(*values, x, training=False)[0]

        return apply, variables, (_images(),)

    return build


def _with_statistics(model: Any) -> tuple[list[Any], list[Any]]:
    """Random weights, and batch statistics that they have on eight images.

    With the initial statistics (mean 0, variance 1) nothing is normalised: MobileNet's output is then of size 1e-19.
    """
    weights = [v.value for v in model.trainable_variables]
    statistics = [v.value for v in model.non_trainable_variables]
    for layer in model.layers:
        if hasattr(layer, "momentum"):
            layer.momentum = 0.0  # the new statistics are those of the batch
    seen = jax.jit(lambda x: model.stateless_call(weights, statistics, x, training=True)[1])
    return weights, list(seen(_images(count=8)))


def haiku_network(name: str, **settings: Any) -> Callable[[], Built]:
    """A network of `haiku.nets`."""

    def build() -> Built:
        import haiku as hk

        def forward(x: Any, training: bool = False) -> Any:
            return getattr(hk.nets, name)(**settings)(x, is_training=training)

        model = hk.without_apply_rng(hk.transform_with_state(forward))
        # Averages exist once the network has been in training; their first value is that of the batch.
        weights, empty = model.init(jax.random.key(0), _images(), training=True)
        state = jax.jit(lambda x: model.apply(weights, empty, x, training=True)[1])(_images(count=8))
        return (lambda values, x: model.apply(*values, x)[0]), (weights, state), (_images(),)

    return build


def haiku_lstm() -> Built:
    """Two LSTM layers, unrolled by scan."""
    import haiku as hk

    def forward(x: Any) -> Any:
        core = hk.DeepRNN([hk.LSTM(256), hk.LSTM(256), hk.Linear(128)])
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]

    model = hk.without_apply_rng(hk.transform(forward))
    x = jax.random.normal(jax.random.key(1), (24, 4, 128))
    return model.apply, model.init(jax.random.key(0), x), (x,)


def equinox_mlp() -> Built:
    """`equinox.nn.MLP` over a batch: its arrays are the weights, the rest is static."""
    import equinox as eqx

    model = eqx.nn.MLP(128, 64, 256, 3, key=jax.random.key(0))
    weights, static = eqx.partition(model, eqx.is_array)
    x = jax.random.normal(jax.random.key(1), (16, 128))
    return (lambda w, x: jax.vmap(eqx.combine(w, static))(x)), weights, (x,)


def equinox_attention() -> Built:
    """`equinox.nn.MultiheadAttention` over a batch of sequences."""
    import equinox as eqx

    model = eqx.nn.MultiheadAttention(8, 256, key=jax.random.key(0))
    weights, static = eqx.partition(model, eqx.is_array)
    x = jax.random.normal(jax.random.key(1), (2, 32, 256))
    return (lambda w, x: jax.vmap(lambda a: eqx.combine(w, static)(a, a, a))(x)), weights, (x,)


def flaxmodels_network(name: str, size: int = 96) -> Callable[[], Built]:
    """A network of flaxmodels."""

    def build() -> Built:
        import flaxmodels

        model = getattr(flaxmodels, name)(output="logits", pretrained=None, normalize=False)
        x = jax.nn.sigmoid(_images(size))
        variables = jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(0))
        return (lambda v, x: jnp.asarray(model.apply(v, x, train=False))), variables, (x,)

    return build


KERAS = (
    "VGG16", "ResNet50", "ResNet50V2", "DenseNet121", "Xception", "InceptionV3", "InceptionResNetV2", "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "NASNetMobile", "ConvNeXtTiny",
)  # fmt: skip
MODELS: dict[str, Callable[[], Built]] = {
    **{f"{name} (keras)": keras_application(name) for name in KERAS},
    "ResNet-18 (haiku)": haiku_network(
        "ResNet18", num_classes=1000, logits_config={"w_init": None}
    ),  # not zeros
    "MobileNetV1 (haiku)": haiku_network("MobileNetV1"),
    "LSTM (haiku)": haiku_lstm,
    "MLP (equinox)": equinox_mlp,
    "attention (equinox)": equinox_attention,
    "ResNet-18 (flaxmodels)": flaxmodels_network("ResNet18"),
}
