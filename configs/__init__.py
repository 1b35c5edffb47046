"""One file per experiment: `get_config(arg)` returns plain data."""
