"""Float models in Flax Linen, with readers for their published weights that need no other framework."""
