"""The values that a rule takes and returns, for those who write one (`register_rule`)."""

from jaxq8.evaluation.values import Accumulator, Array, Broadcast, Value, to_real

__all__ = ["Accumulator", "Array", "Broadcast", "Value", "to_real"]
