"""No test touches the network; these must be set before any import."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far more than they compute; unoptimised code halves their time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
