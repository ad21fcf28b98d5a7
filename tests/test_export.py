"""Exported programs: the same results, any batch, no model code, the integer kernels still in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from jaxq8.files import exported_program
from jaxq8.files.container import Container, write
from jaxq8.files.tree_writer import Writer
from jaxq8.files.weights_file import header
from tests.zoo import ZOO

GOLDEN = Path(__file__).parent / "golden"
SYMBOLIC = ["tiny_cnn", "tiny_depthwise", "tiny_mlp", "tiny_encoder"]
MORE = ["tiny_resnet", "tiny_conv1d", "tiny_conv3d", "tiny_transposed", "tiny_tied", "tiny_lstm", "tiny_nnx"]
XLA = q8.Config(kernels="xla")


def exported(path, name, config=XLA, **options):
    fn, variables, inputs = ZOO[name].build(jax.random.key(0))
    inputs = tuple(inputs)
    encoded = q8.quantize_weights(fn, variables, *inputs, config=config, correct=None)
    q8.export(path, fn, encoded, *inputs, config=config, **options)
    return q8.load_exported(path), jax.jit(q8.quantize(fn, config)), encoded, inputs


def close(found, expected):
    """The same accumulators; codes on the border of a rounding may fall either way in another compilation."""
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        f, e = np.asarray(f, np.float64), np.asarray(e, np.float64)
        assert f.shape == e.shape
        assert np.sum((f - e) ** 2) <= 1e-4 * np.sum(e**2)  # 40 dB, as between any two compilations


@pytest.mark.parametrize("name", [*SYMBOLIC, *(pytest.param(n, marks=pytest.mark.slow) for n in MORE)])
def test_any_batch(tmp_path, name):
    """The program is traced once, with a batch of unknown size, and gives what the function gives for each size."""
    model, fast, encoded, inputs = exported(tmp_path / "m.q8x", name)
    assert "batch" in str(model.inputs[0])
    for size in (1, 2, 5):
        xs = jax.tree.map(lambda x, size=size: jnp.concatenate([x] * 3)[:size], inputs)
        close(model(*xs), fast(encoded, *xs))


def test_fixed_batch(tmp_path):
    """A model that cannot have any batch says so, and runs with the given one."""
    with pytest.warns(UserWarning, match="the batch cannot be symbolic: .*inconclusive"):
        model, fast, encoded, inputs = exported(tmp_path / "m.q8x", "tiny_decoder")
    close(model(*inputs), fast(encoded, *inputs))


@pytest.mark.parametrize(
    "f",
    [
        lambda p, x: jnp.einsum("bk,bn->kn", x, p),  # JAX itself fails with an AssertionError
        lambda p, x: (x @ p.T)[(0, 1, 2, 3).index(x.shape[0] - 1)],
        lambda p, x: {4: x @ p.T}[x.shape[0]],
    ],
)
def test_a_model_may_refuse_any_batch_in_any_way(tmp_path, f):
    """Only what the given batch makes of it is an error of the export."""
    p, x = np.eye(4, 8, dtype=np.float32), np.ones((4, 8), np.float32)
    with pytest.warns(UserWarning, match="the batch cannot be symbolic"):
        q8.export(tmp_path / "m.q8x", f, p, x, platforms=("cpu",), config=XLA)
    close(q8.load_exported(tmp_path / "m.q8x")(x), jax.jit(q8.quantize(f, XLA))(p, x))
    with pytest.raises(q8.ArgumentError, match="the batch cannot be symbolic"):
        q8.export(tmp_path / "m.q8x", f, p, x, platforms=("cpu",), config=XLA, symbolic_batch=True)


def test_symbolic_batch_on_request(tmp_path):
    with pytest.raises(q8.ArgumentError, match="pass symbolic_batch=False"):
        exported(tmp_path / "m.q8x", "tiny_decoder", symbolic_batch=True)
    model, *_ = exported(tmp_path / "m.q8x", "tiny_mlp", symbolic_batch=False)
    assert "batch" not in str(model.inputs[0])
    with pytest.raises(q8.ArgumentError, match="the inputs do not fit"):
        model(jnp.zeros((7, 32)))


def test_no_folder_of_the_writer(tmp_path, monkeypatch):
    """A program names no files of the machine that wrote it; what is compiled later names lines again."""
    limit = jax.config.jax_traceback_in_locations_limit
    exported(tmp_path / "m.q8x", "tiny_cnn")
    assert b".py" not in (tmp_path / "m.q8x").read_bytes()
    monkeypatch.setattr(exported_program, "_lowered", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        exported(tmp_path / "n.q8x", "tiny_mlp")
    assert jax.config.jax_traceback_in_locations_limit == limit


def test_platforms(tmp_path):
    model, *_ = exported(tmp_path / "m.q8x", "tiny_mlp")
    assert model.platforms == ("cpu", "tpu", "cuda")


def test_wrong_inputs(tmp_path):
    model, *_ = exported(tmp_path / "m.q8x", "tiny_mlp")
    for x in (jnp.zeros((2, 32), jnp.int32), [[1.0]], jnp.zeros(32)):
        with pytest.raises(q8.ArgumentError, match="does not fit float32"):
            model(x)
    with pytest.raises(q8.ArgumentError, match="the inputs do not fit"):
        model(jnp.zeros((2, 31)))
    with pytest.raises(q8.ArgumentError, match="the inputs do not fit"):
        model()


def test_inputs_that_are_no_arrays(tmp_path):
    fn, variables, _ = ZOO["tiny_mlp"].build(jax.random.key(0))
    with pytest.raises(q8.ArgumentError, match=r"bind other arguments first with functools\.partial"):
        q8.export(tmp_path / "m.q8x", fn, variables, 3)


def test_weights_are_eight_bits(tmp_path):
    """In the file, in memory, and as arguments of the program: none is a constant in it."""
    model, _, encoded, _ = exported(tmp_path / "m.q8x", "tiny_mlp")
    leaves = jax.tree.leaves(encoded, is_leaf=lambda v: isinstance(v, q8.QTensor))
    codes = [v.values for v in leaves if isinstance(v, q8.QTensor)]
    held = [w for w in jax.tree.leaves(model.weights) if w.dtype == jnp.int8]
    assert [w.shape for w in held] == [c.shape for c in codes]
    constants = re.findall(r"constant dense<[^>]*> : tensor<([0-9x]+)x", model._exported.mlir_module())
    assert all(np.prod([int(n) for n in shape.split("x")]) <= 64 for shape in constants)


def test_integer_dots_after_loading(tmp_path):
    """The compiled program has the products that the function itself has, in the same types."""
    model, fast, encoded, inputs = exported(tmp_path / "m.q8x", "tiny_mlp", symbolic_batch=False)
    direct = fast.lower(encoded, *inputs).compile().as_text()
    loaded = model._call.lower(model.weights, *inputs).compile().as_text()
    pattern = r"__ynn_fusion|__onednn\$\w+|dot\("
    assert re.findall(pattern, loaded)
    assert sorted(set(re.findall(pattern, loaded))) == sorted(set(re.findall(pattern, direct)))
    assert re.search(r"[us]8\[[0-9,]+\]", loaded)


FRESH = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flax", "tests", "optax"):
            raise ImportError(f"{name} is not to be had")
sys.meta_path.insert(0, Refuse())
import numpy as np
import jaxq8 as q8
model = q8.load_exported(sys.argv[1])
x = np.asarray(json.loads(sys.argv[2]), np.float32)
print(json.dumps(np.asarray(model(x)).tolist()))
assert not any(name.split(".")[0] in ("flax", "tests", "optax") for name in sys.modules)
"""


def test_without_model_code(run_python):
    """A process in which neither the model's module nor Flax can be imported."""
    expected = json.loads((GOLDEN / "version1.json").read_text())
    code = f"import sys\nsys.argv = ['', {str(GOLDEN / 'version1.q8x')!r}, {json.dumps(expected['x'])!r}]\n{FRESH}"
    close(json.loads(run_python(code)), expected["y"])


def test_old_program():
    expected = json.loads((GOLDEN / "version1.json").read_text())
    model = q8.load_exported(GOLDEN / "version1.q8x")
    close(model(jnp.asarray(expected["x"], jnp.float32)), np.asarray(expected["y"]))


def test_callbacks_are_refused(tmp_path, monkeypatch):
    """A file is not a way to reach Python: neither when it is written by jax.export, nor when one is forged."""
    q8.export(tmp_path / "m.q8x", lambda v, x: x @ v["w"], {"w": jnp.ones((4, 4))}, jnp.ones((2, 4)))
    real = exported_program.jax_export.deserialize

    class Forged:
        def __init__(self, data):
            self.inner = real(data)

        def mlir_module(self):
            return self.inner.mlir_module() + "stablehlo.custom_call @xla_ffi_python_cpu_callback(%0)"

    monkeypatch.setattr(exported_program.jax_export, "deserialize", Forged)
    with pytest.raises(q8.FileError, match="calls into Python"):
        q8.load_exported(tmp_path / "m.q8x")


def test_bytes_that_are_no_program(tmp_path):
    writer = Writer()
    writer.tensors["program"] = np.frombuffer(b"no program at all", np.uint8)
    document = {**header("program", writer, None, None), "weights": [], "program_size": 17}
    write(tmp_path / "m.q8x", writer.tensors, document)
    with pytest.raises(q8.FileError, match="is not readable by JAX"):
        q8.load_exported(tmp_path / "m.q8x")


def test_weights_of_another_program(tmp_path):
    q8.export(tmp_path / "m.q8x", lambda v, x: x @ v["w"], {"w": jnp.ones((4, 4))}, jnp.ones((2, 4)))
    container = Container(tmp_path / "m.q8x", "program")
    size = container.document["program_size"]
    writer = Writer()
    entries = [["w", writer.node(jnp.ones((4, 5)), ("w",))]]
    writer.tensors["program"] = container.tensor("program", np.uint8, (size,))
    write(tmp_path / "other.q8x", writer.tensors, {**container.document, "weights": entries})
    with pytest.raises(q8.FileError, match="its weights are not those that its program takes"):
        q8.load_exported(tmp_path / "other.q8x")


def test_a_reshape_that_holds_for_one_batch_size_only(tmp_path):
    """JAX exports it for any batch, and refuses other sizes when it is called; so must eight bits."""

    def fn(v, x):
        return jnp.reshape(x @ v["w"], (1, 4, 68))

    w, x = np.random.default_rng(0).standard_normal((2, 16, 34)).astype(np.float32)
    variables, x = {"w": w}, x[None, :8, :16]
    q8.export(tmp_path / "m.q8x", fn, variables, x, config=XLA, platforms=("cpu",))
    model = q8.load_exported(tmp_path / "m.q8x")
    np.testing.assert_array_equal(model(x), jax.jit(q8.quantize(fn, XLA))(variables, x))
    with pytest.raises(q8.ArgumentError, match="the inputs do not fit"):
        model(np.concatenate([x, x]))
