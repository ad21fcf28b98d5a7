"""Files: what goes in comes out; what is broken is refused with a reason; an old file survives a killed writer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import flax.serialization
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxq8 as q8
from jaxq8.files.bit_packing import pack, packed_size, unpack
from jaxq8.files.container import CHECKSUM_KEY, DOCUMENT_KEY, Container, checksum
from tests.zoo import ZOO

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"


class Pair(NamedTuple):
    first: object
    second: object


def quantized(bits, shape=(24, 10), symmetric=True, seed=0):
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return q8.QTensor.from_float(data, q8.Spec(bits=bits, symmetric=symmetric, granularity="channel"))


def same(a, b):
    """Equal structure, codes, dtypes and static fields."""
    a, b = (jax.tree_util.tree_flatten(tree) for tree in (a, b))
    return a[1] == b[1] and all(
        np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(a[0], b[0], strict=True)
    )


@hypothesis.given(bits=st.integers(2, 8), signed=st.booleans(), count=st.integers(0, 300))
def test_packing(bits, signed, count):
    low = -(2 ** (bits - 1)) if signed else 0
    codes = np.random.default_rng(count).integers(low, low + 2**bits, count).astype("i1" if signed else "u1")
    data = pack(codes, bits)
    assert data.size == packed_size(count, bits) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(data, bits, count, signed), codes)


def test_packing_in_pieces():
    codes = np.random.default_rng(0).integers(0, 8, 200_001).astype(np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes, 3), 3, codes.size, False), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_round_trip(tmp_path, bits, symmetric):
    tree = {
        "params": {
            "a": quantized(bits, symmetric=symmetric),
            "b": {3: [jnp.arange(3), (None, True, 2.5, "x")]},
        }
    }
    q8.save(tmp_path / "m.q8", tree)
    found, ranges, config = q8.load(tmp_path / "m.q8")
    assert (ranges, config) == (None, None)
    assert same(found, tree)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.int32, np.bool_, np.uint8])
def test_dtypes_and_shapes(tmp_path, dtype):
    tree = {"a": jnp.ones((2, 3), dtype), "empty": jnp.zeros((0, 3), dtype), "scalar": jnp.zeros((), dtype)}
    q8.save(tmp_path / "m.q8", tree)
    assert same(q8.load(tmp_path / "m.q8")[0], tree)


def test_wide_arrays_stay_wide(tmp_path):
    q8.save(tmp_path / "m.q8", {"a": np.array([2**40]), "b": np.array([1 / 3])})
    found = q8.load(tmp_path / "m.q8")[0]
    assert found["a"][0] == 2**40
    assert found["b"][0] == 1 / 3


def test_names_that_read_the_same(tmp_path):
    tree = {"a": {"b": jnp.zeros(1)}, "a/b": jnp.ones(1), "q": quantized(4), "q.scale": jnp.ones(2)}
    q8.save(tmp_path / "m.q8", tree)
    assert same(q8.load(tmp_path / "m.q8")[0], tree)


def test_equal_arrays_are_stored_once(tmp_path):
    tree = {f"a{i}": np.ones(1000, np.float32) for i in range(6)} | {
        "b": np.ones(1000, np.int32),
        "c": np.ones((10, 100)),
    }
    q8.save(tmp_path / "m.q8", tree)
    assert sorted(load_file(tmp_path / "m.q8")) == ["a0", "b", "c"]
    assert same(q8.load(tmp_path / "m.q8")[0], tree)
    zeros = {"plus": np.zeros(3), "minus": -np.zeros(3)}  # equal numbers, other bits
    q8.save(tmp_path / "m.q8", zeros)
    assert np.signbit(q8.load(tmp_path / "m.q8")[0]["minus"]).all()


def test_a_file_stands_for_at_most_eight_times_its_length(tmp_path):
    tree = [np.ones(100_000, np.float32)] * 30
    q8.save(tmp_path / "m.q8", tree)
    assert same(q8.load(tmp_path / "m.q8")[0], tree)
    assert 30 / 8 <= (tmp_path / "m.q8").stat().st_size / 400_000 < 30 / 7

    def bomb(document):
        document["tree"] = {"list": [{"array": "big", "dtype": "float32", "shape": [10_000]}] * 100}

    with pytest.raises(q8.FileError, match="stands for many times the data in it"):
        q8.load(forged(tmp_path / "m.q8", bomb, {"big": np.ones(10_000, np.float32)}))


def test_loading_copies_nothing(tmp_path):
    """Each array is read into the memory in which the device keeps it."""
    q8.save(tmp_path / "m.q8", {"w": quantized(8, (512, 512))})
    container = Container(tmp_path / "m.q8", "variables")
    data = container.tensor("w", np.int8, (512, 512))
    assert jax.device_put(data).unsafe_buffer_pointer() == data.ctypes.data


def test_four_bits_are_half(tmp_path):
    sizes = {}
    for bits in (2, 4, 8):
        q8.save(tmp_path / "m.q8", {"w": quantized(bits, (512, 512))})
        sizes[bits] = (tmp_path / "m.q8").stat().st_size - 512 * 4
    assert abs(sizes[8] - sizes[4] - 512 * 512 // 2) < 64
    assert abs(sizes[4] - sizes[2] - 512 * 512 // 4) < 64


def test_ranges_and_config(tmp_path):
    config = q8.Config(
        mode="simulate", weights=q8.Spec(bits=5, symmetric=True), activations=q8.Spec(range=q8.Range(-1, 3)),
        overrides=(("*/head:*", {"mode": "off"}), ("op:dot", {"weights": q8.Spec(bits=4, symmetric=True)})), seed=7,
    )  # fmt: skip
    ranges = q8.Ranges({"site": (-1.5, 2.25)})
    q8.save(tmp_path / "m.q8", {}, ranges=ranges, config=config)
    assert q8.load(tmp_path / "m.q8") == ({}, ranges, config)


def test_config_with_a_function():
    with pytest.raises(q8.SpecError, match=r"give it a name with q8\.register_rounding"):
        q8.Config(rounding=jnp.floor).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "expected a JSON object"), ('{"new": 1}', "unknown fields new"),
     ('{"mode": "x"}', "known are"), ('{"overrides": 3}', "cannot be read")],
)  # fmt: skip
def test_config_that_is_none(text, message):
    with pytest.raises(q8.SpecError, match=message):
        q8.Config.from_json(text)


def test_nnx_state(tmp_path):
    fn, state, inputs = ZOO["tiny_nnx"].build(jax.random.key(0))
    encoded = q8.quantize_weights(fn, state, *inputs, correct=None)
    q8.save(tmp_path / "m.q8", encoded)
    found = q8.load(tmp_path / "m.q8")[0]
    assert isinstance(found, dict)
    assert [np.asarray(x).tolist() for x in jax.tree.leaves(found)] == [
        np.asarray(x).tolist() for x in jax.tree.leaves(encoded)
    ]


def test_named_tuple_becomes_a_tuple(tmp_path):
    q8.save(tmp_path / "m.q8", Pair(1, jnp.ones(2)))
    found = q8.load(tmp_path / "m.q8")[0]
    assert type(found) is tuple
    assert found[0] == 1


def test_lazy(tmp_path):
    tree = {"a": quantized(4), "b": jnp.ones(3, jnp.bfloat16)}
    q8.save(tmp_path / "m.q8", tree)
    found = q8.load(tmp_path / "m.q8", lazy=True)[0]
    leaf = found["a"]
    assert (leaf.shape, leaf.bits, leaf.nbytes) == ((24, 10), 4, 24 * 10 // 2 + 10 * 4)
    assert same({name: leaf.read() for name, leaf in found.items()}, tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [({"a": {"b": object()}}, "a/b: a object cannot be stored"), ({(1,): 2}, "is a tuple; files hold"),
     ({1: 2, "1": 3}, "keys of different types"),
     ({"a": np.array(["x"])}, "dtype <U1 cannot be stored"), ({"a": jax.random.key(0)}, "cannot be stored")],
)  # fmt: skip
def test_what_cannot_be_saved(tmp_path, tree, message):
    with pytest.raises(q8.FileError, match=message):
        q8.save(tmp_path / "m.q8", tree)
    assert os.listdir(tmp_path) == []


def test_deep_tree(tmp_path):
    tree: object = jnp.zeros(1)
    for _ in range(200):
        tree = [tree]
    with pytest.raises(q8.FileError, match="deeper than 64 levels"):
        q8.save(tmp_path / "m.q8", tree)


def test_no_folder(tmp_path):
    with pytest.raises(q8.FileError, match="check that the folder exists"):
        q8.save(tmp_path / "none" / "m.q8", {})


def forged(path, change, tensors=None):
    """A file with right checksums whose document was changed."""
    q8.save(path, {"w": quantized(4)})
    container = Container(path, "variables")
    arrays = load_file(path) | (tensors or {})
    document = json.loads(json.dumps(container.document))
    document["checksums"] = {n: checksum(a.reshape(-1).view(np.uint8)) for n, a in arrays.items()}
    change(document)
    text = json.dumps(document)
    save_file(arrays, path, metadata={DOCUMENT_KEY: text, CHECKSUM_KEY: checksum(text.encode())})
    return path


def leaf(document):
    return document["tree"]["dict"][0][1]


def deep(document):
    for _ in range(100):
        document["tree"] = {"list": [document["tree"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=3, library_version="9.9"), "written by jaxq8 9.9; this one reads up to 2"),
        (lambda d: d.update(format_version="1"), "is not a positive integer"),
        (lambda d: d.update(kind="program"), "read it with q8.load_exported"),
        (lambda d: d.update(kind="new"), "unknown kind of document"),
        (lambda d: d.update(tree=[]), "is not a node"),
        (lambda d: d.update(tree={"new": 1}), "unknown kind of node 'new'"),
        (lambda d: d.update(ranges="{"), "its ranges cannot be read"),
        (lambda d: d.update(config=3), "its config are not text"),
        (lambda d: d["checksums"].clear(), "not those that its document lists"),
        (lambda d: leaf(d).update(shape=[2**40, 2**40]), "is no QTensor|its document says"),
        (lambda d: leaf(d).update(shape=[-1, 10]), "is not a shape"),
        (lambda d: leaf(d).update(scale_shape=[7, 10]), "is no QTensor"),
        (lambda d: leaf(d).update(bits=1), "1 bits stored as 'int8'"),
        (lambda d: leaf(d).update(bits=5), "its document says"),
        (lambda d: leaf(d).update(storage="object"), "is no QTensor"),
        (lambda d: leaf(d).update(dtype="object"), "unknown dtype"),
        (lambda d: leaf(d).update(qtensor="x"), "tensor 'x' is missing"),
        (lambda d: leaf(d).update(symmetric=False), "tensor 'w.zero_point' is missing"),
        (deep, "deeper than 64 levels"),
    ],
)  # fmt: skip
def test_forged_documents(tmp_path, change, message):
    with pytest.raises(q8.FileError, match=message):
        q8.load(forged(tmp_path / "m.q8", change))


@pytest.mark.parametrize("scale", [np.nan, 0.0, -1.0, np.inf])
def test_scales_that_mean_nothing(tmp_path, scale):
    path = forged(tmp_path / "m.q8", lambda d: None, {"w.scale": np.full((1, 10), scale, np.float32)})
    with pytest.raises(q8.FileError, match=r"m\.q8: tensor 'w' has scales that are not positive"):
        q8.load(path)


def test_other_files(tmp_path):
    save_file({"a": np.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(q8.FileError, match=r"read float models with q8\.load_float"):
        q8.load(tmp_path / "x.safetensors")
    with pytest.raises(q8.FileError, match="no such file"):
        q8.load(tmp_path / "none")
    with pytest.raises(q8.FileError, match="a folder"):
        q8.load(tmp_path)
    with pytest.raises(q8.FileError, match=r"read it with q8\.load$"):
        q8.load_exported(GOLDEN / "version1.q8")


KILLED = """
import os, sys, signal
import numpy as np
import jaxq8 as q8, jaxq8.files.container as container
step = sys.argv[2]
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
if step == "write":
    real = container.save_file
    def half(tensors, path, metadata):
        real(tensors, path, metadata=metadata)
        os.truncate(path, os.path.getsize(path) // 2)
        die()
    container.save_file = half
elif step == "fsync":
    os.fsync = die
else:
    os.replace = die
q8.save(sys.argv[1], {"w": np.full(1000, 2.0, np.float32)})
"""


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_killed_while_saving(tmp_path, step):
    path = tmp_path / "m.q8"
    q8.save(path, {"w": np.ones(5, np.float32)})
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), step], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    q8.save(path, {"w": np.zeros(5, np.float32)})
    assert not np.any(q8.load(path)[0]["w"])


def test_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    q8.save(tmp_path / "m.q8", {"w": 1})
    monkeypatch.setattr("jaxq8.files.container.save_file", full)
    with pytest.raises(q8.FileError, match="No space left"):
        q8.save(tmp_path / "m.q8", {"w": 2})
    assert os.listdir(tmp_path) == ["m.q8"]
    assert q8.load(tmp_path / "m.q8")[0] == {"w": 1}


def mutated(data, draw):
    """A cut, a flipped bit, a changed or inserted stretch: somewhere in the file, half of them in its header."""
    header = 8 + int.from_bytes(data[:8], "little")
    at = draw(st.integers(0, (header if draw(st.booleans()) else len(data)) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "bytes", "insert", "length"]))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    if kind == "length":
        return draw(st.binary(min_size=8, max_size=8)) + data[8:]
    new = draw(st.binary(min_size=1, max_size=16))
    return data[:at] + new + data[at + (len(new) if kind == "bytes" else 0) :]


def check_mutation(load, original, expected, path, draw):
    path.write_bytes(mutated(original.read_bytes(), draw))
    try:
        found = load(path)
    except q8.QuantizationError as error:
        message = str(error)
    else:
        assert same(found, expected)
        return
    assert str(path) in message


def load_golden(path):
    tree, ranges, config = q8.load(path)
    return tree, None if ranges is None else ranges.to_json(), None if config is None else config.to_json()


def load_program(path):
    return q8.load_exported(path).weights


@pytest.mark.parametrize(("load", "name"), [(load_golden, "version1.q8"), (load_program, "version1.q8x")])
@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_fuzz(tmp_path, load, name, count):
    """Every changed file loads as the same model, or is refused by name."""
    original = GOLDEN / name
    expected = jax.tree.map(lambda x: x, load(original))

    @hypothesis.settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @hypothesis.given(st.data())
    def run(data):
        tree = [leaf for leaf in jax.tree.leaves(expected) if hasattr(leaf, "dtype")]
        check_mutation(
            lambda p: [leaf for leaf in jax.tree.leaves(load(p)) if hasattr(leaf, "dtype")], original, tree,
            tmp_path / "m", data.draw,
        )  # fmt: skip

    run()


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_fuzz_ranges(count):
    text = q8.Ranges({"a/b:dot": (-1.5, 2), "c": (0, 3)}).to_json()

    @hypothesis.settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @hypothesis.given(st.integers(0, len(text) - 1), st.text(max_size=6), st.integers(0, 8))
    def run(at, new, drop):
        try:
            found = q8.Ranges.from_json(text[:at] + new + text[at + drop :])
        except q8.QuantizationError:
            return
        assert q8.Ranges.from_json(found.to_json()) == found

    run()


def test_old_files():
    tree, ranges, config = q8.load(GOLDEN / "version1.q8")
    assert ranges == q8.Ranges({"params/Dense_0/kernel:dot": (-4.0, 4.0)})
    assert config is not None
    assert config.weights.bits == 4
    kernel = tree["params"]["Dense_0"]["kernel"]
    assert (kernel.shape, kernel.bits) == ((32, 12), 4)
    expected = json.loads((GOLDEN / "version1.json").read_text())
    assert np.asarray(kernel.values).ravel()[:24].tolist() == expected["codes"]


def test_the_reader_of_the_documentation(tmp_path):
    """The code of docs/FORMAT.md, which knows neither safetensors nor jaxq8, reads a file of every width."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "FORMAT.md").read_text(), re.DOTALL)
    assert code is not None
    lines = [line for line in code[1].splitlines() if line.strip()]
    assert len(lines) <= 30
    names: dict[str, object] = {}
    exec(code[1], names)
    tree = {f"w{b}": quantized(b, symmetric=b % 2 == 0) for b in range(2, 9)} | {"a": jnp.arange(3.0)}
    q8.save(tmp_path / "m.q8", tree)
    found = names["read"](tmp_path / "m.q8")  # type: ignore[operator]
    for name, value in tree.items():
        expected = value.dequantize() if isinstance(value, q8.QTensor) else value
        np.testing.assert_array_equal(found[name], expected)


def test_float_models(tmp_path):
    variables = {
        "params": {"Dense_0": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}
    }
    flat = {
        "params/Dense_0/kernel": np.ones((2, 3), np.float32),
        "params/Dense_0/bias": np.zeros(3, np.float32),
    }
    save_file(flat, tmp_path / "a.safetensors")
    save_file({k.replace("/", "."): v for k, v in flat.items()}, tmp_path / "b")
    np.savez(tmp_path / "c.npz", **flat)
    (tmp_path / "d.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    for name in ("a.safetensors", "b", "c.npz", "d.msgpack"):
        assert same(q8.load_float(tmp_path / name), variables), name


def test_orbax_folder(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    with checkpoint.StandardCheckpointer() as writer:
        writer.save(tmp_path / "step", variables)
    assert same(q8.load_float(tmp_path / "step"), jax.tree.map(np.asarray, variables))


def test_bfloat16_model(tmp_path):
    save_file({"a.b": np.ones(3, ml_dtypes.bfloat16)}, tmp_path / "m.safetensors")
    assert q8.load_float(tmp_path / "m.safetensors")["a"]["b"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("x.npz", b"PK\x03\x04 no", "cannot be read as npz"), ("x.msgpack", b"\xc1", "cannot be read as msgpack"),
     ("x.msgpack", b"\x01", "holds a int, not a dict"), ("x.safetensors", b"short", "not a whole safetensors"),
     ("x.bin", b"what is it", "unknown kind of file")],
)  # fmt: skip
def test_float_models_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(q8.FileError, match=message):
        q8.load_float(tmp_path / name)


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.array([object()], dtype=object))
    with pytest.raises(q8.FileError, match="allow_pickle=False"):
        q8.load_float(tmp_path / "m.npz")


def test_names_inside_arrays(tmp_path):
    save_file({"a": np.ones(1), "a/b": np.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(q8.FileError, match="rename one of them"):
        q8.load_float(tmp_path / "m.safetensors")


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(
        q8.FileError, match=r"a folder without a checkpoint of orbax; name the one that holds _METADATA"
    ):
        q8.load_float(tmp_path)
