"""Models of keras.applications (JAX backend), haiku, equinox and flaxmodels with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Built = tuple[Callable[..., Any], Any, tuple[Any, ...]]


def _images(size: int = 96) -> jax.Array:
    small = jax.random.normal(jax.random.key(0), (1, size // 8, size // 8, 3))
    return jax.image.resize(small, (1, size, size, 3), "linear")


def keras_application(name: str) -> Callable[[], Built]:
    """A network of keras.applications at 96 x 96."""

    def build() -> Built:
        import keras

        keras.utils.set_random_seed(0)
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(96, 96, 3), classifier_activation=None
        )
        variables = (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
        )

        def apply(values: Any, x: Any) -> Any:
            return model.stateless_call(*values, x, training=False)[0]

        return apply, variables, (_images(),)

    return build


def haiku_network(name: str, **settings: Any) -> Callable[[], Built]:
    """A network of `haiku.nets`."""

    def build() -> Built:
        import haiku as hk

        def forward(x: Any) -> Any:
            return getattr(hk.nets, name)(**settings)(x, is_training=False)

        model = hk.without_apply_rng(hk.transform_with_state(forward))
        variables = model.init(jax.random.key(0), _images())
        return (lambda values, x: model.apply(*values, x)[0]), variables, (_images(),)

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
    "ResNet-18 (haiku)": haiku_network("ResNet18", num_classes=1000),
    "MobileNetV1 (haiku)": haiku_network("MobileNetV1"),
    "LSTM (haiku)": haiku_lstm,
    "MLP (equinox)": equinox_mlp,
    "attention (equinox)": equinox_attention,
    "ResNet-18 (flaxmodels)": flaxmodels_network("ResNet18"),
}
