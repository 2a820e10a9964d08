"""As in tests/keras_seq: the tests compile thousands of tiny programs, and JAX reads this when it starts."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
