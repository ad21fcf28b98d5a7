"""Models that nobody here wrote, from packages: `python -m benchmarks.architectures` writes docs/MODELS.md.

Their packages are not in pyproject.toml (transformers 4 is the last with Flax models): install requirements.txt of this folder.
"""
