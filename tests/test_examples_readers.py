"""The weight readers: right on small files made here, clear about damaged, foreign or hostile ones."""

import io
import json
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from safetensors.numpy import save_file

from examples.models import efficientnet_lite, minilm, squeezenet, torch_legacy
from examples.models.checks import ModelFileError
from examples.models.tokenizer import Tokenizer

VALUES = np.arange(24, dtype="<f4")


class _Name:
    """Pickles as the global `module.name`, without importing it."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class _Storage:
    def __init__(self, kind, key, count):
        self.kind, self.key, self.count = kind, key, count


class _Writer(pickle._Pickler):
    """Writes globals and calls that this machine does not have, as torch and hostile files contain them."""

    def persistent_id(self, value):
        if isinstance(value, _Storage):
            return ("storage", _Name("torch", value.kind), value.key, "cpu", value.count, None)
        return None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, _Name):
            self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, _Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(b"R")
        else:
            super().save(value, save_persistent_id)


def _pickled(value):
    file = io.BytesIO()
    _Writer(file, protocol=2).dump(value)
    return file.getvalue()


def _tensor(
    offset=0, shape=(2, 3, 4), stride=(1, 8, 2), count=24, function=("torch._utils", "_rebuild_tensor_v2")
):
    storage = _Storage("FloatStorage", "0", count)
    return _Call(_Name(*function), storage, offset, shape, stride, False, OrderedDict())


def _legacy(path, state=None, magic=torch_legacy.MAGIC, little=True, keys=("0",), tail=None):
    state = OrderedDict(weight=_tensor()) if state is None else state
    parts = [
        magic,
        1001,
        {"protocol_version": 1001, "little_endian": little, "type_sizes": {}},
        state,
        list(keys),
    ]
    tail = struct.pack("<q", 24) + VALUES.tobytes() if tail is None else tail
    path.write_bytes(b"".join(map(_pickled, parts)) + tail)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file"


def test_legacy_pth_applies_strides(file):
    weight = torch_legacy.read(_legacy(file))["weight"]
    # element (i, j, k) lies at i + 8 j + 2 k
    np.testing.assert_array_equal(weight, VALUES.reshape(3, 4, 2).transpose(2, 0, 1))
    assert weight.flags.c_contiguous


def test_legacy_pth_applies_offsets(file):
    state = OrderedDict(tail=_tensor(offset=20, shape=(4,), stride=(1,)))
    np.testing.assert_array_equal(torch_legacy.read(_legacy(file, state))["tail"], [20, 21, 22, 23])


def test_legacy_pth_refuses_to_run_code(file, tmp_path):
    victim = tmp_path / "made_by_the_pickle"
    state = {"weight": _Call(_Name("os", "mkdir"), str(victim))}
    with pytest.raises(ModelFileError, match=r"Refused to read .*file: it names os\.mkdir"):
        torch_legacy.read(_legacy(file, state))
    assert not victim.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": {"w": _tensor(offset=1)}}, "points outside its storage of 24 elements"),
        ({"state": {"w": _tensor(stride=(1, 8, 1 << 40))}}, "points outside its storage"),
        ({"state": {"w": _tensor(stride=(1, 8, -2))}}, "describes a tensor that is not one"),
        ({"state": {"w": _tensor(shape=(2, 3))}}, "unequal numbers of sizes and strides"),
        ({"state": {"w": _tensor(count=1 << 40)}}, "ends early or is damaged at storage 0"),
        ({"state": {"w": 3}}, "no flat dictionary of tensors"),
        ({"state": [1, 2]}, "no flat dictionary of tensors"),
        ({"state": {"w": _tensor(function=("builtins", "eval"))}}, "names builtins.eval"),
        ({"magic": 7}, "not written by torch.save"),
        ({"little": False}, "big-endian"),
        ({"keys": ("0", "1")}, "lists other storages"),
        ({"tail": b""}, "ends early or is damaged at storage 0"),
        ({"tail": struct.pack("<q", 24) + VALUES.tobytes()[:-1]}, "ends early or is damaged at storage 0"),
    ],
)
def test_legacy_pth_reports_damage(file, changes, message):
    with pytest.raises(ModelFileError, match=message):
        torch_legacy.read(_legacy(file, **changes))


def test_legacy_pth_truncated_anywhere_is_reported(file):
    content = _legacy(file).read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"damaged|ends early"):
            torch_legacy.read(file)


@pytest.mark.parametrize("load", [efficientnet_lite.load, squeezenet.load, minilm.load])
def test_missing_weights_are_named(tmp_path, load):
    with pytest.raises(ModelFileError, match=r"Cannot read the weights .*nowhere.*No such file or directory"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("load", [efficientnet_lite.load, squeezenet.load])
def test_foreign_bytes_are_reported(file, load):
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ModelFileError, match="file is damaged or no pickle of weights"):
        load(file)


def test_zip_pth_says_how_to_convert(file):
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelFileError, match=r"zip archive.*_use_new_zipfile_serialization=False"):
        efficientnet_lite.load(file)


def test_pth_of_another_model_is_reported(file):
    with pytest.raises(ModelFileError, match=r"has no tensor _fc\.weight, so it is no EfficientNet-Lite0"):
        efficientnet_lite.load(_legacy(file))


def _squeezenet_pickle(file, layers):
    file.write_bytes(pickle.dumps(layers, protocol=3))
    return file


def _squeezenet_layers(conv1=(3, 3, 3, 64)):
    layers = {"conv1": [np.zeros(conv1, "f4"), np.zeros(64, "f4")]}
    inputs = 64
    for number, (squeeze, expand) in enumerate(squeezenet.FIRES, start=2):
        shapes = {"squeeze1x1": (1, 1, inputs, squeeze), "expand1x1": (1, 1, squeeze, expand)}
        shapes["expand3x3"] = (3, 3, squeeze, expand)
        for part, shape in shapes.items():
            layers[f"fire{number}/{part}"] = [np.full(shape, number, "f4"), np.zeros(shape[-1], "f4")]
        inputs = 2 * expand
    layers["conv10"] = [np.asfortranarray(np.ones((1, 1, inputs, 1000), "f4")), np.arange(1000, dtype="f4")]
    return layers


def test_squeezenet_pickle_is_read(file):
    _, variables = squeezenet.load(_squeezenet_pickle(file, _squeezenet_layers()))
    assert variables["params"]["fire3"]["expand3x3"]["kernel"].shape == (3, 3, 16, 64)
    np.testing.assert_array_equal(variables["params"]["conv10"]["bias"], np.arange(1000))


def test_squeezenet_of_other_shapes_is_reported(file):
    with pytest.raises(
        ModelFileError, match=r"conv1/kernel is float32\[7, 7, 3, 64\] instead of float32\[3, 3, 3, 64\]"
    ):
        squeezenet.load(_squeezenet_pickle(file, _squeezenet_layers(conv1=(7, 7, 3, 64))))


def test_squeezenet_with_infinite_weights_is_reported(file):
    layers = _squeezenet_layers()
    layers["fire2/squeeze1x1"][1][3] = np.inf
    with pytest.raises(ModelFileError, match="fire2/squeeze1x1/bias has values that are not finite"):
        squeezenet.load(_squeezenet_pickle(file, layers))


def test_squeezenet_without_a_layer_is_reported(file):
    layers = _squeezenet_layers()
    layers["extra"] = layers.pop("conv10")
    with pytest.raises(
        ModelFileError, match=r"in 4 places: .*conv10/bias is missing.*extra/bias is not part of the"
    ):
        squeezenet.load(_squeezenet_pickle(file, layers))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([1, 2, 3], "not a dictionary of layer"),
        ({"conv1": [1, 2]}, "not a dictionary of layer"),
        ({"conv1": [np.zeros(2), np.zeros(2, "f4")]}, r"array of conv1 is damaged \(not float32\)"),
        ({"conv1": [np.array([None]), np.zeros(2, "f4")]}, r"array of conv1 is damaged \(not float32\)"),
        ({"conv1": os.getcwd}, r"Refused to read .*posix\.getcwd|Refused to read .*nt\.getcwd"),
    ],
)
def test_squeezenet_refuses_other_pickles(file, layers, message):
    with pytest.raises(ModelFileError, match=message):
        squeezenet.load(_squeezenet_pickle(file, layers))


def test_squeezenet_truncated_is_reported(file):
    content = _squeezenet_pickle(file, _squeezenet_layers()).read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match="damaged or no pickle of weights"):
            squeezenet.load(file)


CONFIG = {
    "vocab_size": 10,
    "max_position_embeddings": 16,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


def _bert_tensors():
    shapes = {f"embeddings.{name}_embeddings.weight": (size, 8)
              for name, size in (("word", 10), ("position", 16), ("token_type", 2))}  # fmt: skip
    layer = "encoder.layer.0"
    dense = {f"attention.self.{part}": (8, 8) for part in ("query", "key", "value")}
    dense |= {"attention.output.dense": (8, 8), "intermediate.dense": (12, 8), "output.dense": (8, 12)}
    for name, shape in dense.items():
        shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    for norm in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes |= {f"{norm}.LayerNorm.weight": (8,), f"{norm}.LayerNorm.bias": (8,)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def _bert_folder(folder, tensors=None, **config):
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(_bert_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def test_minilm_reads_another_size(tmp_path):
    module, variables = minilm.load(_bert_folder(tmp_path))
    vectors = module.apply(variables, np.zeros((2, 8), np.int32), np.ones((2, 8), bool))
    assert vectors.shape == (2, 8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "asks for the activation 'relu'; this reader knows gelu only"),
        ({"num_hidden_layers": 2}, r"does not hold the encoder that .*encoder\.layer\.1"),
        ({"vocab_size": 11}, r"words/embedding is float32\[10, 8\] instead of float32\[11, 8\]"),
    ],
)
def test_minilm_reports_what_does_not_fit(tmp_path, config, message):
    with pytest.raises(ModelFileError, match=message):
        minilm.load(_bert_folder(tmp_path, **config))


def test_minilm_reports_damaged_files(tmp_path):
    folder = _bert_folder(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(ModelFileError, match="damaged or no float32 safetensors file"):
            minilm.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelFileError, match="no configuration of a BERT model"):
        minilm.load(folder)


def test_tokenizer_reports_a_file_that_is_no_vocabulary(file):
    file.write_text("hello\nworld\n")
    with pytest.raises(ModelFileError, match=r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"):
        Tokenizer.from_file(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFileError, match="Cannot read the vocabulary"):
        Tokenizer.from_file(file)


def test_tokenizer_refuses_a_length_that_is_too_short():
    with pytest.raises(ValueError, match="A text of 5 ids does not fit into 4"):
        Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]"]).batch(["a b c"], length=4)
