"""The command line: ``jaxq8 quantize``, ``inspect``, ``run`` and more (docs/COMMAND_LINE.md)."""

from jaxq8.cli.app import main

__all__ = ["main"]
