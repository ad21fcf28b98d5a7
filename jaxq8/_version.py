"""The version, in a file of its own: what writes files needs it, and may not import the package that imports it."""

__version__ = "0.1.0"
