"""A search over random programs: ``python -m tests.programs --cases 500 --seed 1`` (see `search`)."""
