"""XLA's settings in the tests: programs that compile soon rather than run fast, for simulated devices.

These two flags halve the time that XLA takes to compile for a CPU; jax 0.10 and 0.12 have them.
"""

QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def devices(count: int) -> str:
    return f"{QUICK} --xla_force_host_platform_device_count={count}"


PROCESS = {"XLA_FLAGS": QUICK, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of a process that a test starts, on one device
