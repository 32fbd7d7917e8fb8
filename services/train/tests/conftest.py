"""Set before anything imports Triton: on a CPU its kernels can only be interpreted."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
