"""jaxq8: eight-bit inference for any JAX function. ``fast = jax.jit(q8.quantize(model.apply))``."""

from jaxq8.config import Config, Spec
from jaxq8.errors import ArgumentError, QuantizationError, RangesError, RuleError, SpecError, TensorError
from jaxq8.interpreter import register_rule
from jaxq8.kernels.barred import bar_forms
from jaxq8.plan import Plan, Reason, SiteRecord
from jaxq8.qtensor import QTensor
from jaxq8.ranges import Range, Ranges
from jaxq8.rounding import register_rounding, rounding_names
from jaxq8.selfcheck import SelfCheck, selfcheck
from jaxq8.transform import explain, quantize
from jaxq8.weights import quantize_weights

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Config",
    "Plan",
    "QTensor",
    "QuantizationError",
    "Range",
    "Ranges",
    "RangesError",
    "Reason",
    "RuleError",
    "SelfCheck",
    "SiteRecord",
    "Spec",
    "SpecError",
    "TensorError",
    "bar_forms",
    "explain",
    "quantize",
    "quantize_weights",
    "register_rounding",
    "register_rule",
    "rounding_names",
    "selfcheck",
]
