"""Packed weights: the bytes are those of the layout, unpacking is exact everywhere, and every user of leaves takes them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from safetensors import safe_open

import jaxq8 as q8
from jaxq8.cli import main
from jaxq8.files.container import DOCUMENT_KEY
from jaxq8.files.packing_note import packing_note, repacked
from jaxq8.numerics.codebook import as_codes, is_encoded
from jaxq8.numerics.packed_here import set_acceptance
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.weight_moves import (
    from_canonical,
    from_logical,
    logical_shape,
    shapes,
    to_canonical,
    to_logical,
)
from tests.small import ALWAYS, PAIR, X, assert_equal, dense, normal, sqnr_db

GOLDEN = Path(__file__).parent / "golden"


def blocked(
    dims: tuple[int, ...], inner: tuple[tuple[int, int], ...] = (), order: tuple[int, ...] | None = None
) -> PackedLayout:
    """The dense layout with these inner blocks and the outer blocks in this order (default: that of the axes)."""
    block = [int(np.prod([n for a, n in inner if a == axis], dtype=int)) for axis in range(len(dims))]
    padded = tuple(-(-d // b) * b for d, b in zip(dims, block, strict=True))
    strides, step = [0] * len(dims), int(np.prod(block))
    for axis in reversed(order or range(len(dims))):
        strides[axis], step = step, step * (padded[axis] // block[axis])
    return PackedLayout(dims, padded, tuple(strides), inner)


LAYOUTS = {
    "4i16o4i": blocked((32, 16, 3, 3), ((1, 4), (0, 16), (1, 4))),
    "odd channels": blocked((13, 5, 3, 2), ((1, 2), (0, 8), (1, 4))),
    "channels last": blocked((10, 6, 2, 3), ((0, 16), (1, 4)), order=(2, 3, 1, 0)),
    "groups": blocked((3, 5, 6, 2, 2), ((2, 4), (1, 4))),
    "depthwise": blocked((20, 1, 1, 3, 3), ((0, 16),)),
    "matrix": blocked((10, 7), ((1, 16), (0, 4)), order=(1, 0)),
    "plain": blocked((4, 5)),
    "turned": blocked((4, 5), order=(1, 0)),
    "one block": blocked((3, 4), ((0, 4), (1, 4))),
}


def offsets(layout: PackedLayout) -> np.ndarray:
    """For each element of the padded array its place, from the definition and one element at a time."""
    found = np.zeros(layout.padded, np.int64)
    for index in itertools.product(*map(range, layout.padded)):
        left, place, unit = list(index), 0, 1
        for axis, size in reversed(layout.inner):
            place, unit = place + left[axis] % size * unit, unit * size
            left[axis] //= size
        found[index] = place + sum(o * s for o, s in zip(left, layout.strides, strict=True))
    return found


def codes_of(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(shape).integers(-127, 128, shape).astype(np.int8)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_byte_is_in_its_place(name: str) -> None:
    layout = LAYOUTS[name]
    codes, places = codes_of(layout.dims), offsets(layout)
    assert sorted(places.ravel()) == list(range(layout.nbytes))
    expected = np.zeros(layout.nbytes, np.int8)
    expected[places[tuple(map(slice, layout.dims))]] = codes
    packed = layout.pack(codes)
    np.testing.assert_array_equal(packed, expected)
    assert packed.dtype == np.int8
    np.testing.assert_array_equal(layout.unpack(packed), codes)
    np.testing.assert_array_equal(jax.jit(layout.unpack)(packed), codes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_words_there_and_back(name: str) -> None:
    layout = LAYOUTS[name]
    found = PackedLayout.from_words(np.int64(layout.words))
    assert found == layout
    assert hash(found) == hash(layout)


def test_the_stride_of_a_single_block_may_be_anything() -> None:
    layout = LAYOUTS["one block"]
    other = dataclasses.replace(layout, strides=(1, 999))
    assert PackedLayout.from_words(other.words).pack(codes_of((3, 4))).tolist() == (
        layout.pack(codes_of((3, 4))).tolist()
    )


# 6 x 5 codes in blocks of 4 x 2, padded to 8 x 6: ndims, dims, padded, strides, two blocks, their sizes, their axes, bytes.
GOOD = [2, 6, 5, 8, 6, 24, 8, 2, 4, 2, 0, 1, 48]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 9}, "number"),
        ({0: -1}, "not the number of axes"),
        ({7: 3}, "their number"),
        ({1: 0}, "not positive"),
        ({2: 7}, "larger than its padded"),
        ({4: 5}, "no multiple"),
        ({5: 32}, "stride of axis 0 is 32 and not 24"),
        ({6: 9}, "stride of axis 1 is 9 and not 8"),
        ({8: 0}, "no elements"),
        ({10: 2}, "no such axis"),
        ({12: 49}, "48 bytes and not 49"),
    ],
)
def test_words_of_other_layouts_are_refused(change: dict[int, int], message: str) -> None:
    assert PackedLayout.from_words(GOOD).words == tuple(GOOD)
    words = [change.get(i, word) for i, word in enumerate(GOOD)]
    with pytest.raises(q8.TensorError, match=message):
        PackedLayout.from_words(words)
    for short in ([], GOOD[:-1], GOOD[:5]):
        with pytest.raises(q8.TensorError, match="packed layout"):
            PackedLayout.from_words(short)


def test_codes_of_another_shape_are_refused() -> None:
    with pytest.raises(q8.TensorError, match=r"shape \(4, 4\) do not fit dims \(4, 5\)"):
        LAYOUTS["plain"].pack(codes_of((4, 4)))


@pytest.mark.parametrize("module", [np, jnp])
@pytest.mark.parametrize(
    ("canonical", "groups"),
    [((3, 2, 4, 6), None), ((3, 2, 4, 6), 3), ((3, 1, 8), 8), ((3, 4, 5), None), ((5, 7), None)],
)
def test_logical_axes_and_back(module, canonical, groups) -> None:
    x = module.asarray(codes_of(canonical))
    logical = to_logical(x, groups)
    assert logical.shape == logical_shape(canonical, groups)
    *kernel, c_in, c_out = (range(n) for n in canonical)
    each = len(c_out) // (groups or 1)
    for *k, i, o in itertools.product(*kernel, c_in, c_out):
        at = (*k, i, o) if not kernel else (o, i, *k)
        at = at if groups is None else (o // each, o % each, i, *k)
        assert logical[at] == x[(*k, i, o)]
        if module is jnp:  # one element is enough there
            break
    np.testing.assert_array_equal(from_logical(logical, len(canonical) - 2), x)


MOVES = (("transpose", (2, 0, 1)), ("reshape", (4, 6)), ("transpose", (1, 0)))


def test_moves_there_and_back() -> None:
    x = codes_of((2, 3, 4))
    assert shapes((2, 3, 4), MOVES) == [(2, 3, 4), (4, 2, 3), (4, 6), (6, 4)]
    expected = x.transpose(2, 0, 1).reshape(4, 6).T
    for array in (x, jnp.asarray(x)):
        found = to_canonical(array, MOVES)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(from_canonical(found, MOVES, (2, 3, 4)), x)


@pytest.mark.parametrize(
    "move", [("transpose", (0, 0, 1)), ("reshape", (5, 5)), ("reshape", (-4, -6)), ("flip", (0,))]
)
def test_moves_that_do_not_fit_are_refused(move) -> None:
    with pytest.raises(q8.TensorError, match=rf"{move[0]} by .* does not fit an array of shape \(2, 3, 4\)"):
        shapes((2, 3, 4), (move,))


CHANNEL = q8.Spec(symmetric=True, granularity="channel")


def weight(*shape: int, spec: q8.Spec = CHANNEL) -> q8.QTensor:
    return q8.QTensor.from_float(normal(*shape), spec)


def packed(q: q8.QTensor, layout: PackedLayout, moves=()) -> q8.PackedTensor:
    return q8.PackedTensor.pack(q, layout=layout, problem=(1, 2, 3), isa="test", moves=moves)


@pytest.mark.parametrize(
    ("shape", "moves", "layout"),
    [
        ((3, 3, 16, 32), (), "4i16o4i"),
        ((3, 2, 5, 13), (), "odd channels"),
        ((10, 6, 2, 3), (("transpose", (2, 3, 1, 0)),), "channels last"),  # PyTorch's order
        ((2, 2, 6, 15), (), "groups"),
        ((3, 3, 1, 20), (), "depthwise"),
        ((7, 2, 5), (("transpose", (1, 2, 0)), ("reshape", (10, 7))), "matrix"),
        ((4, 5), (), "turned"),
    ],
)
def test_unpacking_is_exact(shape, moves, layout) -> None:
    q = weight(*shape)
    p = packed(q, LAYOUTS[layout], moves)
    assert_equal(q, as_codes(p))
    assert p.unpack().values.dtype == np.int8
    assert_equal(q, jax.jit(lambda p: p.unpack())(p))
    np.testing.assert_array_equal(p.dequantize(), q.dequantize())
    assert p.dequantize(jnp.bfloat16).dtype == jnp.bfloat16
    canonical = to_canonical(np.asarray(q.values), moves)
    np.testing.assert_array_equal(p.sums, canonical.reshape(-1, canonical.shape[-1]).sum(0, dtype=np.int32))
    assert (p.shape, p.ndim, p.size, p.dtype) == (q.shape, q.ndim, q.size, q.dtype)
    assert p.nbytes == LAYOUTS[layout].nbytes + 4 * canonical.shape[-1] + 8 * q.scale.size
    assert p.groups == {"groups": 3, "depthwise": 20}.get(layout, 1)
    assert is_encoded(p)


@pytest.mark.parametrize(
    "spec",
    [q8.Spec(symmetric=True), q8.Spec(bits=4, symmetric=True), q8.Spec(symmetric=True, granularity="row")],
)
def test_scales_and_widths_are_kept(spec) -> None:
    q = weight(4, 5, spec=spec)
    assert_equal(q, packed(q, LAYOUTS["plain"]).unpack())


def test_numpy_stays_numpy() -> None:
    q = jax.tree.map(np.asarray, weight(4, 5))
    p = packed(q, LAYOUTS["turned"])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(p))
    assert isinstance(p.unpack().values, np.ndarray)
    assert_equal(q, p.unpack())


def test_what_cannot_be_packed() -> None:
    layout = LAYOUTS["plain"]
    with pytest.raises(q8.TensorError, match="zero points; encode it with symmetric=True"):
        packed(weight(4, 5, spec=q8.Spec(signed=True)), layout)
    spec = q8.Spec(bits=4, symmetric=True, granularity="group", group=2)
    grouped = q8.QTensor.from_float(normal(4, 5), spec, axis=1)
    with pytest.raises(q8.TensorError, match="groups of neighbours share"):
        packed(grouped, layout)
    with pytest.raises(q8.TensorError, match="only int8 can be packed"):
        packed(dataclasses.replace(weight(4, 5), values=jnp.zeros((4, 5))), layout)
    with pytest.raises(q8.TensorError, match="pack outside of jit"):
        jax.jit(lambda q: packed(q, layout))(weight(4, 5))
    with pytest.raises(q8.TensorError, match=r"canonical shape \(5, 4\) does not fit a layout of dims"):
        packed(weight(5, 4), layout)
    with pytest.raises(q8.TensorError, match="not that of a contraction"):
        packed(weight(20), layout)
    with pytest.raises(q8.TensorError, match="reshape by"):
        packed(weight(4, 5), layout, (("reshape", (3, 5)),))
    # The weights of a scan are packed one by one.
    with pytest.raises(q8.TensorError, match=r"\(3, 4, 5\) does not fit"):
        packed(weight(3, 4, 5), layout)


# 32 x 64 and 64 x 32 codes, in layouts like those for VNNI: 16 output channels of four inputs each.
PAIR_LAYOUTS = {
    "w": blocked((32, 64), ((1, 16), (0, 4)), order=(1, 0)),
    "v": blocked((64, 32), ((0, 16), (1, 16), (0, 4))),
}
Q_PAIR = q8.quantize_weights(dense, PAIR, X, config=ALWAYS, correct=None)
P_PAIR = {name: packed(q, PAIR_LAYOUTS[name]) for name, q in Q_PAIR.items()}
FAST = q8.quantize(dense, ALWAYS)


def test_a_function_gives_the_same_results() -> None:
    np.testing.assert_array_equal(jax.jit(FAST)(P_PAIR, X), jax.jit(FAST)(Q_PAIR, X))
    # A step that returns the weights can take their memory.
    step = jax.jit(lambda v, x: (v, FAST(v, x)), donate_argnums=0)
    copy = jax.tree.map(jnp.array, P_PAIR)
    same, result = step(copy, X)
    assert_equal(P_PAIR, same)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(copy))
    np.testing.assert_array_equal(result, jax.jit(FAST)(Q_PAIR, X))


def test_numpy_leaves_give_the_same_results() -> None:
    host = jax.device_get(P_PAIR)
    assert isinstance(host["w"], q8.PackedTensor)
    np.testing.assert_array_equal(jax.jit(FAST)(host, X), jax.jit(FAST)(Q_PAIR, X))


@pytest.mark.parametrize("mode", ["weights", "simulate", "off"])
def test_other_modes_give_the_same_results(mode: str) -> None:
    run = jax.jit(q8.quantize(dense, dataclasses.replace(ALWAYS, mode=mode)))
    np.testing.assert_array_equal(run(P_PAIR, X), run(Q_PAIR, X))


def test_derivatives_and_vmap_are_the_same() -> None:
    def slope(v):
        return jax.jit(jax.grad(lambda x: (FAST(v, x) ** 2).sum()))(X)

    np.testing.assert_array_equal(slope(P_PAIR), slope(Q_PAIR))
    # The derivative with respect to the leaves has those of the scales, and nothing for integers.
    gradient = jax.jit(jax.grad(lambda v: (FAST(v, X) ** 2).sum(), allow_int=True))
    np.testing.assert_array_equal(gradient(P_PAIR)["v"].scale, gradient(Q_PAIR)["v"].scale)

    def rows(v):
        return jax.jit(jax.vmap(FAST, in_axes=(None, 0)))(v, X[:, None])

    np.testing.assert_array_equal(rows(P_PAIR), rows(Q_PAIR))


def test_stacks_are_for_scan_and_vmap() -> None:
    square = {"w": Q_PAIR["w"], "v": Q_PAIR["v"]}
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), P_PAIR)
    plain = jax.tree.map(lambda a: jnp.stack([a, a]), square)

    def body(x, v):
        return FAST(v, x), None

    run = jax.jit(lambda v: jax.lax.scan(body, X, v)[0])
    np.testing.assert_array_equal(run(stack), run(plain))
    both = jax.jit(jax.vmap(FAST, in_axes=(0, None)))
    np.testing.assert_array_equal(both(stack, X), both(plain, X))
    with pytest.raises(
        q8.TensorError, match=r"v: not a valid PackedTensor: .* a stack .* is taken apart by scan"
    ):
        FAST(stack, X)


def test_what_is_not_valid_is_refused() -> None:
    p = P_PAIR["w"]
    for change, message in [
        ({"packed": p.packed[:-1]}, r"packed is int8\[2047\]; expected int8\[2048\]"),
        ({"sums": p.sums.astype(jnp.float32)}, r"sums is float32\[64\]; expected int32\[64\]"),
        ({"scale": p.scale[0]}, "do not broadcast"),
        ({"shape": (64, 32)}, "does not fit a layout"),
        ({"layout": dataclasses.replace(p.layout, strides=(1, 1))}, "dense blocked"),
    ]:
        with pytest.raises(q8.TensorError, match=message):
            FAST({**P_PAIR, "w": dataclasses.replace(p, **change)}, X)


def test_it_is_a_pytree() -> None:
    p = P_PAIR["w"]
    assert_equal(p, jax.tree.map(lambda a: a, p))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path({"w": p})]
    assert paths == [f"['w'].{name}" for name in ("packed", "sums", "scale", "zero_point")]
    assert "PackedTensor(32x64, 8 bits, 2048 bytes for test, stands for float32)" in repr(p)
    assert repr(p.tree_unflatten(p.tree_flatten()[1], (1, 2, 3, 4))) == "PackedTensor(1, 2, 3, 4)"
    abstract = jax.eval_shape(lambda: p)
    assert (abstract.unpack().values.shape, abstract.nbytes) == ((32, 64), p.nbytes)
    shape = jax.eval_shape(FAST, jax.eval_shape(lambda: P_PAIR), X)
    assert shape.shape == X.shape
    plans = [q8.explain(dense, jax.eval_shape(lambda v=v: v), X, config=ALWAYS) for v in (P_PAIR, Q_PAIR)]
    assert plans[0].sites == plans[1].sites


def test_replicated_over_a_mesh() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "d")
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put(P_PAIR, everywhere)
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(placed))
    np.testing.assert_array_equal(jax.jit(FAST)(placed, X), jax.jit(FAST)(Q_PAIR, X))
    again = placed["w"].with_codes(placed["w"].unpack())
    assert again.packed.sharding == everywhere
    assert_equal(P_PAIR["w"], again)


def test_the_tools_take_packed_weights() -> None:
    """Encoding again, comparing, error sources, and folding a norm into the scales of a packed weight."""
    assert q8.quantize_weights(dense, P_PAIR, X, config=ALWAYS, correct=None)["w"] is P_PAIR["w"]
    reports = [q8.compare(dense, FAST, PAIR, [X], fast_variables=v) for v in (P_PAIR, Q_PAIR)]
    assert str(reports[0]) == str(reports[1])

    def normed(v, x):
        return dense(v, x) * v["factor"] + v["bias"]

    vectors = {"factor": jnp.linspace(-2, 2, 32), "bias": jnp.ones(32)}
    folded = q8.fold_norms(normed, {**P_PAIR, **vectors}, X, config=ALWAYS)
    expected = q8.fold_norms(normed, {**Q_PAIR, **vectors}, X, config=ALWAYS)
    assert isinstance(folded["v"], q8.PackedTensor)
    assert (folded["factor"] == 1).all()
    assert_equal(expected["v"], folded["v"].unpack())
    values = np.asarray(folded["v"].unpack().values)
    np.testing.assert_array_equal(folded["v"].sums, values.sum(0, dtype=np.int32))


@pytest.fixture
def backend():
    """A backend that reads what was packed for `test` and `golden`."""
    asked = []

    def accepts(isa, problem, layout):
        asked.append((isa, problem, layout))
        return isa in ("test", "golden")

    before = set_acceptance(accepts)
    yield asked
    set_acceptance(before)


def test_a_file_gives_packed_leaves_where_they_suit(tmp_path, backend) -> None:
    q8.save(tmp_path / "m.q8", P_PAIR)
    found = q8.load(tmp_path / "m.q8")[0]
    assert_equal(P_PAIR, found)
    assert [a[1] for a in backend] == [(1, 2, 3)] * 2
    lazy = q8.load(tmp_path / "m.q8", lazy=True)[0]["w"]
    assert (lazy.shape, lazy.bits) == ((32, 64), 8)
    assert_equal(P_PAIR["w"], lazy.read())


def test_a_file_gives_plain_codes_elsewhere_and_to_older_readers(tmp_path) -> None:
    q8.save(tmp_path / "m.q8", P_PAIR)
    assert_equal(Q_PAIR, q8.load(tmp_path / "m.q8")[0])
    q8.save(tmp_path / "plain.q8", Q_PAIR)
    documents = []
    for name in ("m.q8", "plain.q8"):
        with safe_open(tmp_path / name, "np") as file:
            documents.append(json.loads(file.metadata()[DOCUMENT_KEY]))
    # But for the note both are the same, and fields that a reader does not know do not change the version.
    assert [node.pop("packed")["isa"] for _, node in documents[0]["tree"]["dict"]] == ["test", "test"]
    assert documents[0] == documents[1]
    assert documents[0]["format_version"] == 1


def test_a_golden_file_is_read(backend) -> None:
    expected = json.loads((GOLDEN / "packed.json").read_text())
    found = q8.load(GOLDEN / "packed.q8")[0]["w"]
    assert isinstance(found, q8.PackedTensor)
    assert np.asarray(found.packed).tolist() == expected["packed"]
    assert (found.problem, found.isa) == ((7, 11), "golden")
    set_acceptance(None)
    plain = q8.load(GOLDEN / "packed.q8")[0]["w"]
    assert isinstance(plain, q8.QTensor)
    assert np.asarray(plain.values).tolist() == expected["codes"]


def test_the_reader_of_the_documentation_ignores_the_note() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "FORMAT.md"
    code = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(code[1], names)
    expected = q8.load(GOLDEN / "packed.q8")[0]["w"].dequantize()
    np.testing.assert_allclose(names["read"](GOLDEN / "packed.q8")["w"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"isa": 3},
        {"isa": "other"},
        {"problem": ["x"]},
        {"problem": [0] * 1000},
        {"moves": None},
        {"moves": [["flip", [0]]]},
        {"moves": [["reshape", [4, 5]]]},
        {"moves": [["transpose", "10"]]},
        {"layout": []},
        {"layout": [1 << 40]},
        {"layout": list(blocked((64, 32)).words)},
        # A huge padding for a small weight.
        {"layout": list(blocked((32, 64), ((0, 1 << 20),)).words)},
        {"layout": [2, 32, 64, 1 << 20, 64, 64, 1, 0, 1 << 26]},
        {"new": 1, "layout": {"kind": "of a later version"}},
    ],
)
def test_a_note_that_is_not_understood_is_ignored(change, backend) -> None:
    note = json.loads(json.dumps(packing_note(P_PAIR["w"])))
    assert_equal(P_PAIR["w"], repacked(Q_PAIR["w"], note))
    for wrong in ({**note, **change}, None, [], 5):
        assert_equal(Q_PAIR["w"], repacked(Q_PAIR["w"], wrong))


def test_a_broken_tensor_is_not_saved(tmp_path) -> None:
    broken = dataclasses.replace(P_PAIR["w"], packed=P_PAIR["w"].packed[:-4])
    with pytest.raises(q8.TensorError, match="w: not a valid PackedTensor"):
        q8.save(tmp_path / "m.q8", {"w": broken})


def test_a_program_takes_plain_codes(tmp_path) -> None:
    q8.export(tmp_path / "m.q8x", dense, P_PAIR, X, config=ALWAYS, platforms=("cpu",))
    program = q8.load_exported(tmp_path / "m.q8x")
    assert sqnr_db(jax.jit(FAST)(Q_PAIR, X), program(X)) > 100
    assert [len(parts) for parts in program.weights] == [3, 3]


def test_states_of_flax() -> None:
    """A state is that of plain codes: it fits packed and plain targets alike, and shapes."""
    state = serialization.to_bytes(P_PAIR)
    assert state == serialization.to_bytes(Q_PAIR)
    for target in (P_PAIR, jax.tree.map(jnp.zeros_like, P_PAIR), jax.eval_shape(lambda: P_PAIR)):
        assert_equal(P_PAIR, serialization.from_bytes(target, state))
    assert_equal(Q_PAIR, serialization.from_bytes(Q_PAIR, state))
    with pytest.raises(q8.TensorError, match=r"w: values int8\[32, 64\] in the state and int8\[64, 32\] in"):
        serialization.from_bytes({"w": P_PAIR["v"], "v": P_PAIR["v"]}, state)


def test_the_command_line(tmp_path, monkeypatch, capsys, backend) -> None:
    def call(line: str) -> tuple[int, str]:
        status = main(line.split())
        return status, capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    q8.save("packed.q8", P_PAIR)
    q8.save("plain.q8", Q_PAIR)
    assert "s8 symmetric, 64 scales, packed for test" in call("inspect packed.q8 --verify")[1]
    found = [json.loads(call(f"inspect {name}.q8 --tensor w --json")[1]) for name in ("packed", "plain")]
    assert found[0].pop("spec") == f"{found[1].pop('spec')}, packed for test"
    assert found[0] == found[1]
    assert call("dequantize packed.q8 --output w.npz")[0] == 0
    np.testing.assert_array_equal(np.load("w.npz")["w"], Q_PAIR["w"].dequantize())
    rows = json.loads(call("diff packed.q8 plain.q8 --json")[1])["tensors"]
    assert [row["what"] for row in rows] == ["stored otherwise"] * 2
    assert call("diff packed.q8 packed.q8")[0] == 0
