"""``python -m jaxq8`` is the command ``jaxq8``."""

from jaxq8.cli import main

raise SystemExit(main())
