"""The traced function as one flat list of equations, and the vectors that are applied next to its contractions.

Repairs change the variables of a model, not its code. A correction of a convolution's mean goes into the bias or the batch-norm
mean that is added right after the convolution. A factor per channel goes into the weights, biases and scales between two
contractions. This file finds those places.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, open_jaxpr, primitives
from jaxq8.analysis.arguments import is_arraylike
from jaxq8.analysis.inner_functions import INLINED, callees
from jaxq8.analysis.sites import CARRIES_CODES, CONTRACTIONS, Analysis, Path, Site
from jaxq8.analysis.traced_call import Call
from jaxq8.analysis.trails import Trail, moved_trail
from jaxq8.config import Config
from jaxq8.numerics.codebook import is_encoded

Ref = tuple[Path, Any]  # a variable, and the path of its scope


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One equation with its operands resolved across calls: a reference, or None for a literal."""

    eqn: Any
    path: Path
    inputs: tuple[Ref | None, ...]
    outputs: tuple[Ref, ...]

    @property
    def primitive(self) -> Any:
        return self.eqn.primitive


@dataclasses.dataclass
class Chains:
    """The equations of a function, the readers and the maker of each variable, and the trails of the weights.

    Attributes:
      nodes: The equations in program order.
      readers: Variable -> the equations that read it.
      makers: Variable -> the equation that makes it.
      trails: Variable -> how it was made from weights by layout operations alone.
      analysis: The sites.
      outputs: The variables that the function returns.
      names: For each leaf its path.
    """

    nodes: list[Node]
    readers: dict[Ref, list[Node]]
    makers: dict[Ref, Node]
    trails: dict[Ref, Trail]
    analysis: Analysis
    outputs: set[Ref]
    names: list[str | None]

    @classmethod
    def trace(
        cls, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], config: Config
    ) -> Chains:
        """Traces `fn` and flattens it."""
        return cls.of(Call.trace(fn, args, kwargs), config)

    @classmethod
    def of(cls, call: Call, config: Config) -> Chains:
        """Flattens a traced function; leaves are numbered as the array leaves of all arguments."""
        jaxpr, consts = call.as_inputs, len(call.consts)
        inputs: list[Ref] = [((), v) for v in jaxpr.invars]
        nodes: list[Node] = []
        results = _flatten(jaxpr, (), inputs, nodes)
        trails: dict[Ref, Trail] = {}
        for leaf, (argument, is_weight) in enumerate(
            zip(inputs[consts:], call.arguments.weights, strict=True)
        ):
            if is_weight:
                trails[argument] = Trail.of_leaf(leaf, len(argument[1].aval.shape))
        readers: dict[Ref, list[Node]] = collections.defaultdict(list)
        makers: dict[Ref, Node] = {}
        for node in nodes:
            for ref in node.inputs:
                if ref is not None:
                    readers[ref].append(node)
            makers.update(dict.fromkeys(node.outputs, node))
            operands = [None if ref is None else trails.get(ref) for ref in node.inputs]
            trail = moved_trail(node.eqn, operands)
            if trail is not None:
                trails[node.outputs[0]] = trail
        outputs = {r for r in results if r is not None}
        return cls(nodes, readers, makers, trails, call.analyse(config), outputs, list(call.arguments.paths))

    def contractions(self) -> list[tuple[Node, Site]]:
        """Contractions with a weight, in program order."""
        found = [(n, self.analysis.sites.get(n.path)) for n in self.nodes if n.primitive in CONTRACTIONS]
        return [(n, s) for n, s in found if s is not None and s.weight is not None]

    def sharing(self, name: str) -> set[str]:
        """The sites that read the codes of a site's range: the site itself, and the contractions that share the codes."""
        found = {name}
        for node in self.nodes:
            site = self.analysis.sites.get(node.path)
            if site is None or site.name != name:
                continue
            encoded: Ref | None = node.outputs[0]
            if node.primitive in CONTRACTIONS:  # the codes of its activation, not of its result
                encoded = node.inputs[1 if site.weight == 0 else 0]
            if encoded is not None:
                found |= self._contractions_of(encoded)
        return found

    def _contractions_of(self, ref: Ref) -> set[str]:
        """Contractions that read a variable, directly or through operations that pass codes on unchanged."""
        found: set[str] = set()
        for node in self.readers.get(ref, []):
            site = self.analysis.sites.get(node.path)
            if node.primitive in CONTRACTIONS and site is not None:
                found.add(site.name)
            elif node.primitive in CARRIES_CODES:
                found |= self._contractions_of(node.outputs[0])
        return found

    def only_reader(self, ref: Ref) -> Node | None:
        """The only equation that reads a variable; None if there are several or none, or if the function returns it."""
        nodes = self.readers.get(ref, [])
        return nodes[0] if len(nodes) == 1 and ref not in self.outputs else None

    def vector(self, ref: Ref | None, axis: int) -> int | None:
        """The leaf that a variable is a broadcast of, along all axes but `axis`; None if the variable is anything else."""
        trail = self.trails.get(ref) if ref is not None else None
        if trail is None or len(trail.sources) != 1:
            return None
        leaf, axes = trail.sources[0]
        used = [d for d, members in enumerate(axes) if members]
        return leaf if used == [axis] else None

    def shift_after(self, node: Node) -> tuple[int, float] | None:
        """The leaf that is added to (+1) or subtracted from (-1) a contraction's result before anything else happens to it."""
        ref, axis = node.outputs[0], channel_axis(node)
        while (reader := self.only_reader(ref)) is not None:
            if reader.primitive in (primitives.add_p, primitives.sub_p):
                first = reader.inputs[0] == ref
                leaf = self.vector(reader.inputs[1] if first else reader.inputs[0], axis)
                subtracts = reader.primitive is primitives.sub_p
                if leaf is None or (subtracts and not first):
                    return None
                return leaf, -1.0 if subtracts else 1.0
            if reader.primitive is not primitives.convert_element_type_p:
                return None
            ref = reader.outputs[0]
        return None


def channel_axis(node: Node) -> int:
    """The axis of a contraction's result that holds its weight's output channels."""
    if node.primitive is primitives.conv_general_dilated_p:
        return int(node.eqn.params["dimension_numbers"].out_spec[1])
    return len(node.outputs[0][1].aval.shape) - 1


def _flatten(jaxpr: Any, path: Path, inputs: Sequence[Ref | None], nodes: list[Node]) -> list[Ref | None]:
    """Appends the equations of a jaxpr to `nodes`, with the equations of inlined calls in the place of the calls."""
    env: dict[Any, Ref | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Ref | None:
        return None if isinstance(atom, Literal) else env.get(atom, (path, atom))

    for index, eqn in enumerate(jaxpr.eqns):
        here = (*path, index)
        operands = [read(v) for v in eqn.invars]
        if eqn.primitive in INLINED:
            (callee,) = callees(eqn)
            body = open_jaxpr(callee.jaxpr)[0]
            results = _flatten(body, (*here, callee.key), operands, nodes)
            env.update(zip(eqn.outvars, results, strict=True))
            continue
        outputs = tuple((path, v) for v in eqn.outvars)
        env.update(zip(eqn.outvars, outputs, strict=True))
        nodes.append(Node(eqn, here, tuple(operands), outputs))
    return [read(v) for v in jaxpr.outvars]


def array_leaves(variables: Any) -> tuple[list[Any], list[int], Any]:
    """(all leaves, positions of the array leaves, tree) of a tree of variables."""
    flat, tree = jax.tree_util.tree_flatten(variables, is_leaf=is_encoded)
    return flat, [i for i, leaf in enumerate(flat) if is_arraylike(leaf)], tree


def moved(variables: Any, chains: Chains, shifts: Mapping[str, np.ndarray]) -> Any:
    """`variables` with a shift of each named contraction's result added to the vector after it.

    A contraction stays uncorrected if it has no such vector, or if another contraction uses the same vector.
    """
    flat, arrays, tree = array_leaves(variables)
    places = {s.name: chains.shift_after(n) for n, s in chains.contractions() if s.name in shifts}
    users = collections.Counter(place[0] for place in places.values() if place)
    for name, place in places.items():
        if place is None or users[place[0]] > 1:
            continue
        leaf, sign = place
        old = flat[arrays[leaf]]
        if np.shape(old) == shifts[name].shape:
            flat[arrays[leaf]] = (jnp.asarray(old, jnp.float32) + sign * shifts[name]).astype(old.dtype)
    return jax.tree_util.tree_unflatten(tree, flat)
