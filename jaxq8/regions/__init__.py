"""Native regions: what one call into a library can do of a program in eight bits.

The input is a function whose operations (`jaxq8.operations`) are collected into a program instead of being computed.
`candidates` finds the connected operations that one call can do, `lowering` makes a typed `program` of them, and `native_call`
runs it inside of `jax.jit`. `in_jax` runs the same programs in pure JAX. Nothing here depends on rules, sites or ranges, nor on
how codes came about.
"""
