"""XLA's settings in the tests: programs that compile soon rather than run fast, for simulated devices."""

from importlib import metadata

# Two flags that together halve the time that XLA takes to compile for a CPU. A flag that it does not know is the
# process's end, and the first is gone since jaxlib 0.11.
_FUSION = "--xla_cpu_use_fusion_emitters=false " if metadata.version("jaxlib").startswith("0.10.") else ""
QUICK = f"{_FUSION}--xla_cpu_parallel_codegen_split_count=1"


def devices(count: int) -> str:
    return f"{QUICK} --xla_force_host_platform_device_count={count}"


PROCESS = {"XLA_FLAGS": QUICK, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of a process that a test starts, on one device
