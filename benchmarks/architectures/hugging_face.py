"""Flax models of transformers 4, with their own random weights and small configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Built = tuple[Callable[..., Any], Any, tuple[Any, ...]]
TEXT = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
GPT = {"vocab_size": 1000, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 64}
ENCODER_DECODER = {
    "vocab_size": 1000, "d_model": 256, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
IMAGE = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "image_size": 64,
}
IDS, SEQUENCE, BATCH = 1000, 32, 2


def _tokens(seed: int) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (BATCH, SEQUENCE), 3, IDS)


def _model(name: str, config: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, f"Flax{name}")(getattr(transformers, config)(**settings), seed=0)


def _built(model: Any, names: tuple[str, ...], inputs: tuple[Any, ...]) -> Built:
    def apply(params: Any, *values: Any) -> Any:
        return model(**dict(zip(names, values, strict=True)), params=params)[0]

    return apply, model.params, inputs


def text(name: str, config: str, **settings: Any) -> Callable[[], Built]:
    """A model of token ids."""
    return lambda: _built(_model(name, config, **settings), ("input_ids",), (_tokens(0),))


def sequence_to_sequence(name: str, config: str, **settings: Any) -> Callable[[], Built]:
    """An encoder and a decoder."""
    names = ("input_ids", "decoder_input_ids")
    return lambda: _built(_model(name, config, **settings), names, (_tokens(0), _tokens(1)))


def vision(name: str, config: str, **settings: Any) -> Callable[[], Built]:
    """A model of images (the Flax models take channels first)."""
    images = jax.random.normal(jax.random.key(0), (BATCH, 3, 64, 64))
    return lambda: _built(_model(name, config, **settings), ("pixel_values",), (images,))


def clip() -> Built:
    """Two towers: images and texts to their similarities."""
    small = {k: v for k, v in IMAGE.items() if k != "image_size"}
    settings = {"text_config": {**TEXT, "max_position_embeddings": SEQUENCE, "eos_token_id": 999},
                "vision_config": {**small, "image_size": 64, "patch_size": 16}, "projection_dim": 128}  # fmt: skip
    model = _model("CLIPModel", "CLIPConfig", **settings)
    images = jax.random.normal(jax.random.key(0), (BATCH, 3, 64, 64))

    def apply(params: Any, ids: Any, pixels: Any) -> Any:
        mask, places = jnp.ones_like(ids), jnp.broadcast_to(jnp.arange(SEQUENCE), ids.shape)
        found = model(ids, pixels, attention_mask=mask, position_ids=places, params=params)
        return found.text_embeds, found.image_embeds

    return apply, model.params, (_tokens(0), images)


def whisper() -> Built:
    """Log-mel frames and tokens to logits."""
    settings = {**ENCODER_DECODER, "num_mel_bins": 80, "max_source_positions": 50, "max_target_positions": 64}
    model = _model("WhisperForConditionalGeneration", "WhisperConfig", **settings)
    frames = jax.random.normal(jax.random.key(0), (BATCH, 80, 100))
    return _built(model, ("input_features", "decoder_input_ids"), (frames, _tokens(1)))


def wav2vec2() -> Built:
    """Half a second of sound to features."""
    model = _model(
        "Wav2Vec2Model", "Wav2Vec2Config", **TEXT, do_stable_layer_norm=True, feat_extract_norm="layer"
    )
    return _built(model, ("input_values",), (jax.random.normal(jax.random.key(0), (1, 8000)),))


# Their table of sines is cut at this many columns, of which it has twice the size of a head: less would cut it short.
ROTARY = {**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 128}
# Left out, because they do not run in float: T5 and LongT5 call `jnp.clip(a_max=...)`, which JAX has removed.
MODELS: dict[str, Callable[[], Built]] = {
    "BERT": text("BertModel", "BertConfig", **TEXT),
    "RoBERTa": text("RobertaModel", "RobertaConfig", **TEXT),
    "ALBERT": text("AlbertModel", "AlbertConfig", **TEXT, embedding_size=128),
    "DistilBERT": text("DistilBertModel", "DistilBertConfig", vocab_size=1000, dim=256, n_layers=2, n_heads=4, hidden_dim=1024),
    "ELECTRA": text("ElectraModel", "ElectraConfig", **TEXT),
    "RoFormer": text("RoFormerModel", "RoFormerConfig", **TEXT),
    "BigBird": text("BigBirdModel", "BigBirdConfig", **TEXT, attention_type="original_full"),
    "GPT-2": text("GPT2LMHeadModel", "GPT2Config", **GPT),
    "GPT-J": text("GPTJForCausalLM", "GPTJConfig", **GPT, rotary_dim=32),
    "GPT-Neo": text("GPTNeoForCausalLM", "GPTNeoConfig", vocab_size=1000, hidden_size=256, num_layers=2, num_heads=4,
                    attention_types=[[["global", "local"], 1]], max_position_embeddings=64),
    "OPT": text("OPTForCausalLM", "OPTConfig", vocab_size=1000, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
                ffn_dim=1024, word_embed_proj_dim=256, max_position_embeddings=64),
    "BLOOM": text("BloomForCausalLM", "BloomConfig", vocab_size=1000, hidden_size=256, n_layer=2, n_head=4),
    "Llama": text("LlamaForCausalLM", "LlamaConfig", **{**ROTARY, "num_key_value_heads": 4}),
    "Mistral": text("MistralForCausalLM", "MistralConfig", **ROTARY),
    "Gemma": text("GemmaForCausalLM", "GemmaConfig", **ROTARY, head_dim=64),
    "XGLM": text("XGLMForCausalLM", "XGLMConfig", vocab_size=1000, d_model=256, num_layers=2, attention_heads=4, ffn_dim=1024),
    "BART": sequence_to_sequence("BartModel", "BartConfig", **ENCODER_DECODER, max_position_embeddings=64),
    "mBART": sequence_to_sequence("MBartModel", "MBartConfig", **ENCODER_DECODER, max_position_embeddings=64),
    "Marian": sequence_to_sequence("MarianModel", "MarianConfig", **ENCODER_DECODER, max_position_embeddings=64),
    "Pegasus": sequence_to_sequence("PegasusModel", "PegasusConfig", **ENCODER_DECODER, max_position_embeddings=64),
    "Whisper": whisper,
    "wav2vec 2.0": wav2vec2,
    "CLIP": clip,
    "ViT": vision("ViTForImageClassification", "ViTConfig", **IMAGE, patch_size=16),
    "BEiT": vision("BeitForImageClassification", "BeitConfig", **IMAGE, patch_size=16),
    "DINOv2": vision("Dinov2Model", "Dinov2Config", hidden_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=64,
                     patch_size=16),
    "RegNet": vision("RegNetForImageClassification", "RegNetConfig", embedding_size=32, hidden_sizes=[64, 128], depths=[1, 2],
                     groups_width=32),
}  # fmt: skip
