"""What XLA:CPU made of eight-bit products, read from the text of a compiled program."""

from __future__ import annotations

import re


def products(program: str) -> tuple[int, int]:
    """How many products of uint8 and int8 a program has, and how many of them YNNPACK's integer kernels run.

    Each product is a computation of its own, which XLA does not inline (`jaxq8.kernels.dot`).
    """
    found = re.findall(r"^%?_mixed_product\S* \(.*?^\}", program, re.MULTILINE | re.DOTALL)
    return len(found), sum(bool(re.search(r"ROOT \S*ynn_fusion\S* = s32\[", text)) for text in found)
