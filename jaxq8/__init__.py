"""jaxq8: eight-bit inference for any JAX function. ``fast = jax.jit(q8.quantize(model.apply))``."""

from jaxq8.calibration import calibrate
from jaxq8.codebook import CodeBook
from jaxq8.config import Config, Spec
from jaxq8.equalization import equalize
from jaxq8.errors import (
    ArgumentError,
    CalibrationWarning,
    FileError,
    QuantizationError,
    RangesError,
    RuleError,
    SpecError,
    TensorError,
)
from jaxq8.exporting import ExportedModel, export, load_exported
from jaxq8.flax_state import register as _register_with_flax
from jaxq8.floats import load_float
from jaxq8.folding import fold_norms
from jaxq8.interpreter import register_rule
from jaxq8.kernels.barred import bar_forms
from jaxq8.kernels.processor import compiler_options
from jaxq8.laboratory import experiment
from jaxq8.learned import (
    RoundingProblem,
    learn_rounding,
    learned_rounding_names,
    reconstruct,
    register_learned_rounding,
)
from jaxq8.observers import Observer, observer_names, register_observer
from jaxq8.plan import Plan, Reason, SiteRecord
from jaxq8.qtensor import QTensor
from jaxq8.ranges import Range, Ranges
from jaxq8.repairs import correct_bias
from jaxq8.report import Report, compare
from jaxq8.rounding import register_rounding, rounding_names
from jaxq8.selfcheck import SelfCheck, selfcheck
from jaxq8.sensitivity import Sensitivity, sensitivity
from jaxq8.serialize import load, save
from jaxq8.tables import Table, bootstrap
from jaxq8.training import initial_ranges, initial_step, integer_codes, learned_ranges, learned_step
from jaxq8.transform import explain, quantize
from jaxq8.trees import StoredTensor
from jaxq8.tuning import Tuning, load_tuning, tune
from jaxq8.weights import quantize_weights

_register_with_flax()

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CalibrationWarning",
    "CodeBook",
    "Config",
    "ExportedModel",
    "FileError",
    "Observer",
    "Plan",
    "QTensor",
    "QuantizationError",
    "Range",
    "Ranges",
    "RangesError",
    "Reason",
    "Report",
    "RoundingProblem",
    "RuleError",
    "SelfCheck",
    "Sensitivity",
    "SiteRecord",
    "Spec",
    "SpecError",
    "StoredTensor",
    "Table",
    "TensorError",
    "Tuning",
    "bar_forms",
    "bootstrap",
    "calibrate",
    "compare",
    "compiler_options",
    "correct_bias",
    "equalize",
    "experiment",
    "explain",
    "export",
    "fold_norms",
    "initial_ranges",
    "initial_step",
    "integer_codes",
    "learn_rounding",
    "learned_ranges",
    "learned_rounding_names",
    "learned_step",
    "load",
    "load_exported",
    "load_float",
    "load_tuning",
    "observer_names",
    "quantize",
    "quantize_weights",
    "reconstruct",
    "register_learned_rounding",
    "register_observer",
    "register_rounding",
    "register_rule",
    "rounding_names",
    "save",
    "selfcheck",
    "sensitivity",
    "tune",
]
