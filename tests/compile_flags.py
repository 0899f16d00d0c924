"""How the tests compile: import this before upslope, which reads `XLA_FLAGS` when it is imported.

The tests compile some thousand training programs and run each briefly. Without LLVM's optimisation and XLA's fusion
emitters that takes a third of the time, here and in the commands that tests start; see `compiled_for_users`.
"""

import os

import jax

HAS_FUSION_EMITTERS_FLAG = jax.__version_info__ < (0, 11)  # XLA ends the process at a flag that it does not know
FUSION_EMITTERS = {"xla_cpu_use_fusion_emitters": True} if HAS_FUSION_EMITTERS_FLAG else {}
FLAGS = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * HAS_FUSION_EMITTERS_FLAG

# Processes that share the cores would wait for each other's threads, here and in the commands that tests start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
# Two devices on any machine, so that seeds are spread in the tests too.
jax.config.update("jax_num_cpu_devices", 2)
