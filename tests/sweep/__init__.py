"""Every public function of JAX and every layer of Flax through `quantize`: `python -m tests.sweep` writes docs/API_SWEEP.md."""
