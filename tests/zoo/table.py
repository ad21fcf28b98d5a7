"""The table of all models."""

from __future__ import annotations

from tests.zoo.cnn import MobileNetV2, ResNet
from tests.zoo.entry import ZooEntry
from tests.zoo.inception import Inception
from tests.zoo.inputs import decoder_state, images, sentences, tokens, vectors
from tests.zoo.own import ConvNeXt, EfficientNet, UNet
from tests.zoo.tiny import LSTM, MLP, AutoEncoder, ConvStack, TiedLogits, TinyCNN, TinyDepthwise, nnx_parts
from tests.zoo.transformer import DecoderStep, Encoder

TINY_ENCODER = Encoder(vocabulary=64, positions=16, width=32, layers=2, heads=4, hidden=64)
TINY_DECODER = DecoderStep(vocabulary=64, width=32, layers=2, heads=4, hidden=64)
TINY_EXCITE = EfficientNet(((1, 16, 1, 1, 3), (4, 16, 2, 2, 5)), stem=16, head=64, classes=10)
MINILM = Encoder(width=384, layers=6, heads=12, hidden=1536)

ZOO: dict[str, ZooEntry] = {
    "resnet50": ZooEntry("full", images(224, 224), ResNet()),
    "resnet152": ZooEntry("full", images(224, 224), ResNet(stages=(3, 8, 36, 3))),
    "mobilenet_v2": ZooEntry("full", images(224, 224), MobileNetV2()),
    "inception_v3": ZooEntry("full", images(299, 299), Inception()),
    "convnext_tiny": ZooEntry("full", images(224, 224), ConvNeXt()),
    "efficientnet_b0": ZooEntry("full", images(224, 224), EfficientNet()),
    "unet": ZooEntry("full", images(128, 128), UNet()),
    "bert_base": ZooEntry("full", sentences(128, 30522), Encoder()),
    "minilm_shaped": ZooEntry("full", sentences(128, 30522), MINILM),
    "lstm": ZooEntry("full", vectors(64, 256), LSTM()),
    "decoder_step": ZooEntry("full", decoder_state(6, 256, 12, 64, 16384), DecoderStep()),
    "tiny_cnn": ZooEntry("tiny", images(16, 16), TinyCNN()),
    "tiny_resnet": ZooEntry("tiny", images(32, 32), ResNet(stages=(1, 2), width=16, classes=10)),
    "tiny_depthwise": ZooEntry("tiny", images(16, 16), TinyDepthwise()),
    "tiny_mlp": ZooEntry("tiny", vectors(32), MLP()),
    "tiny_conv1d": ZooEntry("tiny", vectors(40, 8), ConvStack((5,))),
    "tiny_conv3d": ZooEntry("tiny", images(9, 9, 9, channels=4), ConvStack((3, 3, 3))),
    "tiny_transposed": ZooEntry("tiny", images(16, 16), AutoEncoder()),
    "tiny_convnext": ZooEntry("tiny", images(32, 32), ConvNeXt((1, 1), (16, 32), classes=10)),
    "tiny_excite": ZooEntry("tiny", images(16, 16), TINY_EXCITE),
    "tiny_unet": ZooEntry("tiny", images(16, 16), UNet(widths=(16, 32))),
    "tiny_tied": ZooEntry("tiny", tokens(12, 96), TiedLogits()),
    "tiny_encoder": ZooEntry("tiny", sentences(16, 64), TINY_ENCODER),
    "tiny_decoder": ZooEntry("tiny", decoder_state(2, 16, 4, 8, 64), TINY_DECODER),
    "tiny_lstm": ZooEntry("tiny", vectors(6, 24), LSTM(features=32, layers=1, classes=10)),
    "tiny_nnx": ZooEntry("tiny", images(8, 8), parts=nnx_parts),
}
