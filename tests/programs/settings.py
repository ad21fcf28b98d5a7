"""What a seed decides besides its program: where ranges come from, the sign of dots, how it is compiled, where NaN is put."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import jaxq8 as q8

KINDS = ("dynamic", "dynamic", "static", "given")
WIDER = 1.5  # given ranges are calibrated ones, that many times as wide
# The same optimized HLO, in less than half of the time: LLVM optimizes little, and loops are written in the older way.
SURE = {
    "xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1,
}  # fmt: skip
# In less than half of that. But at level 0 XLA:CPU 0.10.2 can read memory that nobody wrote (NaN in the derivative of
# ``v / jnp.max(jnp.abs(v))``), so whatever seems to break a law is compiled anew with `SURE`.
QUICK = {**SURE, "xla_backend_optimization_level": 0}
FULL = {  # XLA's own values, said because `FLAGS` may be set for the process
    "xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32,
}  # fmt: skip
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one seed.

    Attributes:
      kind: Where ranges come from, one of `KINDS`; finding them takes a fifth of the time of a program.
      mixed: Whether dots are those of unsigned and signed codes.
      attention: Whether batched products of two activations run in eight bits.
      full: Whether the fast kernels are compiled with XLA's own options.
      symbolic: Whether a program is exported for any batch, where it allows that.
      place: Where NaN is put: (which input, which element), as fractions.
    """

    kind: str
    mixed: bool
    attention: bool
    full: bool
    symbolic: bool
    place: tuple[float, float]

    @classmethod
    def of(cls, seed: int) -> Settings:
        pick = random.Random(seed)
        return cls(
            pick.choice(KINDS), pick.random() < 0.5, pick.random() < 0.35, pick.random() < 0.06, pick.random() < 0.5,
            (pick.random(), pick.random()),
        )  # fmt: skip

    def options(self, quick: dict[str, Any]) -> dict[str, Any]:
        """Of the compiler for the fast kernels, where `quick` are those for everything else."""
        return FULL if self.full else quick

    @property
    def static(self) -> bool:
        """Whether ranges are not found in the run."""
        return self.kind != "dynamic"

    @property
    def wider(self) -> float:
        """How many times as wide ranges are as the data need."""
        return WIDER if self.kind == "given" else 1.0

    def config(self, kernels: str = "xla") -> q8.Config:
        """The configuration with one of the kernels."""
        return q8.Config(kernels=kernels, attention=self.attention)

    def position(self, sizes: list[int]) -> tuple[int, int]:
        """The input that gets NaN and the element."""
        which = int(self.place[0] * len(sizes))
        return which, int(self.place[1] * sizes[which])
