"""The table of contenders: one row makes a contender run on every model."""

from benchmarks.contenders import onnx_runtime, qwix_int8, xla
from benchmarks.contenders.base import Contender, Prepared, UnavailableError

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("xla", "XLA float32", "self", xla.prepare_float),
        Contender("xla-wide", "XLA float32, 512-bit vectors", "self", xla.prepare_float_wide, extra=True),
        Contender("jaxq8-float", "jaxq8 float", "self", xla.prepare_float_forms),
        Contender("jaxq8-dynamic", "jaxq8 dynamic", "self", xla.prepare_dynamic),
        Contender("jaxq8-static", "jaxq8 static", "self", xla.prepare_static),
        Contender("jaxq8-native", "jaxq8 native", "self", xla.prepare_native),
        Contender("jaxq8-native-dynamic", "jaxq8 native dynamic", "self", xla.prepare_native_dynamic),
        Contender(
            "jaxq8-attention", "jaxq8 static, attention", "self", xla.prepare_static_attention, extra=True
        ),
        Contender(
            "jaxq8-plain", "jaxq8 static, default options", "self", xla.prepare_static_plain, extra=True
        ),
        Contender("qwix", "Qwix int8", "peer", qwix_int8.prepare),
        Contender("ort", "ONNX Runtime float32", "peer", onnx_runtime.prepare_float),
        Contender("ort-dynamic", "ONNX Runtime dynamic", "peer", onnx_runtime.prepare_dynamic),
        Contender(
            "ort-dynamic-fused",
            "ONNX Runtime dynamic, fused attention",
            "peer",
            onnx_runtime.prepare_dynamic_fused,
            extra=True,
        ),
        Contender("ort-static", "ONNX Runtime static", "peer", onnx_runtime.prepare_static),
    )
}

__all__ = ["CONTENDERS", "Contender", "Prepared", "UnavailableError"]
