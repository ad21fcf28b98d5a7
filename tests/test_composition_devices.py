"""`quantize` over several devices: eight virtual ones in a process of their own, and two processes that find each other."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import ROOT

EIGHT = "--xla_force_host_platform_device_count=8"
pytestmark = pytest.mark.xla_flags

SETUP = """
import jax, jax.numpy as jnp
import jaxq8 as q8
from jax import P
from jax.sharding import AxisType, NamedSharding
from tests.small import ALWAYS, BOUNDARY_DB, PAIR, SQNR_DB, X, assert_equal, dense, fast, grad, loss, sqnr_db

assert jax.device_count() == 8
alone = jax.jit(fast)(PAIR, X)
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

def place(tree, **specs):
    return {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in tree.items()}
"""

CASES = {
    "data parallel by sharding": """
found = jax.jit(fast)(PAIR, jax.device_put(X, NamedSharding(mesh, P("data"))))
assert_equal(alone, found)
assert found.sharding.spec == P("data")
""",
    "tensor parallel by sharding": """
found = jax.jit(fast)(place(PAIR, w=P(None, "model"), v=P("model")), X)
assert_equal(alone, found)  # float sums over the parts would differ in their last bits
""",
    "sharding constraint inside": """
def fn(variables, x):
    return dense(variables, jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("data"))))
assert_equal(alone, jax.jit(q8.quantize(fn, ALWAYS))(PAIR, X))
def constrained(variables, x):
    return dense(jax.lax.with_sharding_constraint(variables, NamedSharding(mesh, P("model"))), x)
assert isinstance(q8.quantize_weights(constrained, PAIR, X, config=ALWAYS)["w"], q8.QTensor)
assert_equal(alone, jax.jit(q8.quantize(constrained, ALWAYS))(PAIR, X))
""",
    "encoded weights, sharded": """
encoded = q8.quantize_weights(dense, PAIR, X, config=ALWAYS)
spread = jax.tree.map(
    lambda a: jax.device_put(a, NamedSharding(mesh, P(None, "model") if a.shape[1] % 2 == 0 else P())), encoded
)
assert_equal(jax.jit(fast)(encoded, X), jax.jit(fast)(spread, X))
""",
    "explicit axes": """
with jax.set_mesh(jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)):
    x = jax.device_put(X, P("data"))
    assert_equal(alone, jax.jit(fast)(PAIR, x))
    split = {"w": jax.device_put(PAIR["w"], P(None, "model")), "v": jax.device_put(PAIR["v"], P("model"))}
    def fn(variables, x):
        return jnp.einsum("bk,kn->bn", jnp.tanh(x @ variables["w"]), variables["v"], out_sharding=P("data"))
    assert sqnr_db(alone, jax.jit(q8.quantize(fn, ALWAYS))(split, x)) > SQNR_DB
""",
    "shard_map around": """
mapped = jax.shard_map(fast, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
assert_equal(alone, jax.jit(mapped)(PAIR, X))  # rows have scales of their own: who holds them makes no difference
""",
    "shard_map around relu": """
def clipped(variables, x):  # JAX makes the bound of a clip each device's own
    return jax.nn.relu6(jax.nn.relu(x @ variables["w"]) @ variables["v"])
run = q8.quantize(clipped, ALWAYS)
mapped = jax.shard_map(run, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
assert_equal(jax.jit(run)(PAIR, X), jax.jit(mapped)(PAIR, X))
plan = q8.explain(jax.shard_map(clipped, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")), PAIR, X, config=ALWAYS)
assert [s.eight_bit for s in plan.sites if s.macs] == [True, True]
""",
    "shard_map inside, data parallel": """
mapped = jax.shard_map(dense, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
assert q8.explain(mapped, PAIR, X, config=ALWAYS).eight_bit_share == 1.0
assert_equal(alone, jax.jit(q8.quantize(mapped, ALWAYS))(PAIR, X))
encoded = q8.quantize_weights(mapped, PAIR, X, config=ALWAYS)
assert isinstance(encoded["w"], q8.QTensor)
assert_equal(alone, jax.jit(q8.quantize(mapped, ALWAYS))(encoded, X))
exact, found = (grad(loss(f))(PAIR, X) for f in (dense, q8.quantize(mapped, ALWAYS)))
assert sqnr_db(exact, found) > SQNR_DB
""",
    "shard_map inside, tensor parallel": """
def part(variables, x):
    return jax.lax.psum(jnp.tanh(x @ variables["w"]) @ variables["v"], "model")
specs = {"w": P(None, "model"), "v": P("model")}
mapped = jax.shard_map(part, mesh=mesh, in_specs=(specs, P("data")), out_specs=P("data"))
plan = q8.explain(mapped, PAIR, X, config=ALWAYS)
assert [s.eight_bit for s in plan.sites if s.macs] == [True, True]
encoded = q8.quantize_weights(mapped, PAIR, X, config=ALWAYS)
results = [jax.jit(q8.quantize(mapped, ALWAYS))(v, X) for v in (PAIR, encoded)]
assert_equal(*results)
assert sqnr_db(dense(PAIR, X), results[0]) > SQNR_DB
around = jax.shard_map(q8.quantize(part, ALWAYS), mesh=mesh, in_specs=(specs, P("data")), out_specs=P("data"))
assert sqnr_db(dense(PAIR, X), jax.jit(around)(PAIR, X)) > SQNR_DB
""",
    "convolutions": """
from tests.zoo import ZOO
fn, variables, (images,) = ZOO["tiny_cnn"].build(jax.random.key(0), batch=8)
one = jax.jit(q8.quantize(fn, ALWAYS))
spread = jax.device_put(images, NamedSharding(mesh, P("data")))
assert sqnr_db(one(variables, images), one(variables, spread)) > BOUNDARY_DB  # one range of all parts
""",
}


@pytest.mark.parametrize("name", CASES)
def test_eight_devices_compute_what_one_does(name, run_python):
    run_python(SETUP + CASES[name], EIGHT)


PROCESS = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax import P
from jax.sharding import NamedSharding
from tests.small import PAIR, X, fast
assert jax.device_count() == 2 and jax.local_device_count() == 1
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = np.split(np.asarray(X), 2)[jax.process_index()]
x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), rows)
found = jax.jit(fast)(jax.tree.map(np.asarray, PAIR), x)
mine = np.asarray(found.addressable_shards[0].data)
with jax.default_device(jax.local_devices()[0]):
    alone = jax.jit(fast)(jax.tree.map(np.asarray, PAIR), np.asarray(X))
np.testing.assert_array_equal(np.split(np.asarray(alone), 2)[jax.process_index()], mine)
print("equal")
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"

    def run(number: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROCESS, address, str(number)]
        return subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(run, (0, 1)):
            assert done.returncode == 0, done.stderr
            assert done.stdout.split()[-1] == "equal"  # gloo prints lines of its own
