"""jaxq8: eight-bit inference for any JAX function. ``fast = jax.jit(q8.quantize(model.apply))``."""

from jaxq8._version import __version__ as __version__
from jaxq8.calibration.batch_norm_folding import fold_norms
from jaxq8.calibration.bias_correction import correct_bias
from jaxq8.calibration.calibrate import calibrate
from jaxq8.calibration.compare import Report, compare
from jaxq8.calibration.equalization import equalize
from jaxq8.calibration.error_sources import error_sources
from jaxq8.calibration.sensitivity import Sensitivity, sensitivity
from jaxq8.config import Config
from jaxq8.display.intervals import Share, bootstrap
from jaxq8.display.tables import Table
from jaxq8.errors import (
    ArgumentError,
    CalibrationWarning,
    FileError,
    NativeError,
    QuantizationError,
    RangesError,
    RuleError,
    SpecError,
    TensorError,
)
from jaxq8.evaluation.interpreter import register_rule
from jaxq8.files.exported_program import ExportedModel, export, load_exported
from jaxq8.files.flax_serialization import register as _register_with_flax
from jaxq8.files.float_models import load_float
from jaxq8.files.tree_records import StoredTensor
from jaxq8.files.weights_file import load, save
from jaxq8.kernels.barred import bar_forms
from jaxq8.kernels.processor import compiler_options
from jaxq8.learning.laboratory import experiment
from jaxq8.learning.learn_rounding import learn_rounding
from jaxq8.learning.recipe import Compressed, compress
from jaxq8.learning.reconstruction import reconstruct
from jaxq8.learning.rounding_problems import (
    RoundingProblem,
    learned_rounding_names,
    register_learned_rounding,
)
from jaxq8.learning.training import initial_ranges, initial_step, integer_codes, learned_ranges, learned_step
from jaxq8.machine.selfcheck import SelfCheck, selfcheck
from jaxq8.machine.tuning import Tuning, load_tuning, tune
from jaxq8.native.library import Status as NativeStatus
from jaxq8.native.library import status as native_status
from jaxq8.numerics.codebook import CodeBook
from jaxq8.numerics.observers import Observer, observer_names, register_observer
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.numerics.rounding import register_rounding, rounding_names
from jaxq8.numerics.spec import Spec
from jaxq8.packing import pack
from jaxq8.plan import Plan, Reason, SiteRecord
from jaxq8.transform import explain, quantize
from jaxq8.weights import quantize_weights

_register_with_flax()

__all__ = [
    "ArgumentError",
    "CalibrationWarning",
    "CodeBook",
    "Compressed",
    "Config",
    "ExportedModel",
    "FileError",
    "NativeError",
    "NativeStatus",
    "Observer",
    "PackedTensor",
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
    "Share",
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
    "compress",
    "correct_bias",
    "equalize",
    "error_sources",
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
    "native_status",
    "observer_names",
    "pack",
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
