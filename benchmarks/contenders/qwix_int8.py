"""Qwix (google/qwix): int8 weights per channel and int8 activations, ranges found in each run.

Its defaults: symmetric activations from the absolute maximum, which is also its fastest way.
"""

from __future__ import annotations

import re
from typing import Any

import jax

from benchmarks.contenders.base import Prepared, UnavailableError
from benchmarks.contenders.xla import compiled
from benchmarks.models import Model


def prepare(model: Model) -> Prepared:
    """The model with Qwix's post-training quantization, weights quantized in advance."""
    try:
        module, variables = _quantized(model, ".*")
        jax.eval_shape(module.apply, variables, *model.inputs)
    except ImportError as error:
        raise UnavailableError(f"Qwix is not installed: pip install qwix ({error})") from error
    except ValueError:
        # Qwix 0.1.8 cannot apply an embedding table that also makes the logits: those modules stay float.
        tables = [name for name, leaves in model.variables["params"].items() if "embedding" in leaves]
        if not tables:
            raise
        names = "|".join(map(re.escape, tables))
        module, variables = _quantized(model, rf"^(?!.*({names})).*$")
    return compiled(module.apply, variables, model.inputs)


def _quantized(model: Model, module_path: str) -> tuple[Any, Any]:
    """The module and its variables, with the weights of the modules that the pattern names in eight bits."""
    import qwix

    rules = [qwix.QuantizationRule(module_path=module_path, weight_qtype="int8", act_qtype="int8")]
    module = qwix.quantize_model(model.module, qwix.PtqProvider(rules))
    template = jax.eval_shape(module.init, jax.random.key(0), *model.inputs)["params"]
    params = qwix.quantize_params(model.variables["params"], template)
    return module, {**model.variables, "params": params}
