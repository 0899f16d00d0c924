"""Compiler flags for the tests; import this before upslope, which reads `XLA_FLAGS` when it is imported.

The tests compile about a thousand training programs and run each only briefly. Disabling LLVM's optimisations and XLA's
fusion emitters cuts the time to a third, both in this process and in the commands that tests start. Tests that need the
usual compiler options use the fixture `compiled_for_users`.
"""

import os

import jax

HAS_FUSION_EMITTERS_FLAG = jax.__version_info__ < (0, 11)  # XLA aborts the process on an unknown flag
FUSION_EMITTERS = {"xla_cpu_use_fusion_emitters": True} if HAS_FUSION_EMITTERS_FLAG else {}
FLAGS = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * HAS_FUSION_EMITTERS_FLAG

# With more threads, processes on the same cores would wait for each other. The commands that tests start inherit this.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
# Use two devices on every machine, so that the tests also cover seeds distributed over devices.
jax.config.update("jax_num_cpu_devices", 2)
