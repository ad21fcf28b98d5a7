"""The equations of one group, and what is known of them: who reads what, and which results are stored at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxq8._compat import Literal
from jaxq8.analysis.inner_functions import SCAN
from jaxq8.kernels.epilogue import numbers_of_codes
from jaxq8.kernels.registry import contraction
from jaxq8.regions.arithmetic import ENCODINGS, is_arithmetic
from jaxq8.regions.candidates import VIEWS, is_small, is_stored, takes_first
from jaxq8.regions.linear import trailing

RECOMPUTED = 24  # a vector of so many operations is computed again for each of its readers rather than stored
ANYWHERE = "anywhere"


class Graph:
    """The equations of a group.

    Attributes:
      eqns: All equations of the program.
      members: Positions of those of the group, in order.
      wanted: The variables of the group that others read.
      names: For each of these the variables by which others read it: itself, and what `stored` returned for it.
      makers: The equation that makes a variable, for the whole program.
      consts: Variables of known value.
      position: The position of the member that makes a variable.
      readers: The members that read a variable.
      roots: For each variable of the group the variable in whose step it is computed: itself if it is stored, None if it is
        computed in the step of each of its readers.
    """

    def __init__(
        self, eqns: Sequence[Any], members: Sequence[int], wanted: Sequence[Any], makers: Mapping[Any, Any],
        consts: Mapping[Any, Any],
    ) -> None:  # fmt: skip
        self.eqns, self.members, self.makers, self.consts = eqns, tuple(members), makers, consts
        self._same: dict[Any, Any] = {}
        for i in self.members:
            if is_stored(eqns[i]):
                self._same.update(zip(eqns[i].outvars, eqns[i].invars, strict=True))
        self.position = {v: i for i in self.members for v in eqns[i].outvars}
        self.names: dict[Any, list[Any]] = {}
        for v in wanted:
            self.names.setdefault(self.real(v), []).append(v)
        self.wanted = tuple(self.names)
        self.readers: dict[Any, list[int]] = {}
        for i in self.members:
            if not is_stored(eqns[i]):
                atoms = [self.real(v) for v in eqns[i].invars]
                for v in dict.fromkeys(v for v in atoms if not isinstance(v, Literal)):
                    self.readers.setdefault(v, []).append(i)
        self.roots = self._roots()

    def real(self, atom: Any) -> Any:
        """A variable itself in place of what `stored` returned for it."""
        while not isinstance(atom, Literal) and atom in self._same:
            atom = self._same[atom]
        return atom

    def maker(self, atom: Any) -> Any:
        """The member that makes a variable; None for everything from outside."""
        if isinstance(atom, Literal) or atom not in self.position:
            return None
        return self.eqns[self.position[atom]]

    def number(self, atom: Any) -> int | None:
        """A whole number that is known before the run; None for all others."""
        value = atom.val if isinstance(atom, Literal) else self.consts.get(atom)
        if not isinstance(value, int | np.ndarray | np.generic):
            return None
        found = np.asarray(value)
        return int(found.reshape(())) if found.size == 1 and found.dtype.kind in "iu" else None

    def only_reader(self, variable: Any) -> int | None:
        """The one member that reads a variable; None if there are others, or if the variable leaves the group."""
        readers = self.readers.get(variable, [])
        return readers[0] if len(readers) == 1 and variable not in self.wanted else None

    def _roots(self) -> dict[Any, Any]:
        roots: dict[Any, Any] = {}
        cost = self._costs()
        for i in reversed(self.members):
            eqn = self.eqns[i]
            if is_stored(eqn):
                continue
            if len(eqn.outvars) > 1 or eqn.primitive is SCAN:
                roots.update((v, v) for v in eqn.outvars)
                continue
            (out,) = eqn.outvars
            found = {self._root_of_reader(out, self.eqns[r], roots) for r in self.readers.get(out, [])}
            computed = out not in self.wanted and None not in found
            reads_codes = eqn.primitive is numbers_of_codes.primitive
            several = len(found) > 1 or ANYWHERE in found
            if computed and (reads_codes or (several and cost.get(out, RECOMPUTED + 1) <= RECOMPUTED)):
                roots[out] = None  # computed wherever it is read
            elif computed and len(found) == 1 and ANYWHERE not in found and self._is_inner(eqn):
                (roots[out],) = found
            else:
                roots[out] = out
        return roots

    def _costs(self) -> dict[Any, int]:
        """For each vector the number of operations that compute it from what the group reads, without stores between them."""
        cost: dict[Any, int] = {}
        for i in self.members:
            eqn = self.eqns[i]
            if len(eqn.outvars) == 1 and is_small(eqn.outvars[0]) and self._is_vector(eqn):
                operands = (self.real(v) for v in eqn.invars)
                cost[eqn.outvars[0]] = 1 + sum(cost.get(v, 0) for v in operands if not isinstance(v, Literal))
        return cost

    @staticmethod
    def _is_vector(eqn: Any) -> bool:
        """Whether an equation on vectors can be computed again for each of its readers."""
        return (is_arithmetic(eqn) and eqn.primitive not in ENCODINGS) or takes_first(eqn)

    @staticmethod
    def _is_inner(eqn: Any) -> bool:
        """Whether an equation may be computed in the step of its reader."""
        p = eqn.primitive
        elementwise = is_arithmetic(eqn) and p not in ENCODINGS
        return p is contraction.primitive or p in VIEWS or elementwise or takes_first(eqn)

    def _root_of_reader(self, variable: Any, reader: Any, roots: Mapping[Any, Any]) -> Any:
        """The root of an equation that reads a variable, `ANYWHERE` if it has several; None if it reads it from memory."""
        if reader.primitive is SCAN:
            return None
        (out,) = reader.outvars
        if is_arithmetic(reader) or takes_first(reader):
            return ANYWHERE if roots[out] is None else roots[out]
        maker = self.maker(variable)
        if reader.primitive in VIEWS and maker is not None and maker.primitive is contraction.primitive:
            # The result of a product in the shape of the user's array: its channels stay the last axis, or become several.
            last = trailing(out.aval.shape, variable.aval.shape[-1])
            return roots[out] if last is not None and roots[out] is not out else None
        return None

    def base(self, variable: Any) -> Any:
        """What a chain of views begins with."""
        maker = self.maker(variable)
        while maker is not None and maker.primitive in VIEWS:
            variable = self.real(maker.invars[0])
            maker = self.maker(variable)
        return variable
