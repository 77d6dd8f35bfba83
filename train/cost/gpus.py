"""Known GPUs: what their data sheets say, for MFU and for planning."""

import subprocess
from dataclasses import dataclass

GIB = 2**30

USABLE = 0.92
"""Share of a GPU's memory that is the allocator's: the rest is CUDA's context, NCCL's buffers and fragmentation."""


@dataclass(frozen=True)
class GPU:
    """One kind of GPU, and how machines of it are usually connected."""

    flops: float
    """Dense bf16 peak of the tensor cores, FLOP/s."""
    memory: int
    """Bytes of memory as the driver counts them: a nominal gigabyte is 2^30 bytes."""
    memory_bandwidth: float
    """Bytes per second between the GPU and its memory."""
    link: float
    """Bytes per second and direction to the other GPUs of a machine: half of NVLink's total, or PCIe."""
    network: float
    """Bytes per second and direction to other machines, for each GPU: the vendor's own machines of eight GPUs."""
    host: float
    """Bytes per second and direction to the host's memory: PCIe 4.0 or 5.0, or NVLink where the host has it."""


# Vendors' data sheets. `network` is one InfiniBand port for each GPU in NVIDIA's DGX (200 Gb/s beside an A100, 400 Gb/s
# beside Hopper and Blackwell), and a share of a usual one where there is no such machine. The first key found in the
# name that the driver reports holds, so that longer names stand before shorter ones.
GPUS = {
    "GH200": GPU(989e12, 96 * GIB, 4.0e12, 450e9, 50e9, 450e9),
    "H200": GPU(989e12, 141 * GIB, 4.8e12, 450e9, 50e9, 64e9),
    "H100 PCIe": GPU(756e12, 80 * GIB, 2.0e12, 64e9, 25e9, 64e9),
    "H100": GPU(989e12, 80 * GIB, 3.35e12, 450e9, 50e9, 64e9),
    "H800": GPU(989e12, 80 * GIB, 3.35e12, 200e9, 50e9, 64e9),
    "B200": GPU(2250e12, 180 * GIB, 8.0e12, 900e9, 50e9, 64e9),
    "A100-SXM4-40GB": GPU(312e12, 40 * GIB, 1.555e12, 300e9, 25e9, 32e9),
    "A100-PCIE-40GB": GPU(312e12, 40 * GIB, 1.555e12, 32e9, 12.5e9, 32e9),
    "A100": GPU(312e12, 80 * GIB, 2.039e12, 300e9, 25e9, 32e9),
    "A800": GPU(312e12, 80 * GIB, 2.039e12, 200e9, 25e9, 32e9),
    "L40S": GPU(362e12, 48 * GIB, 0.864e12, 32e9, 6.25e9, 32e9),
    "A10G": GPU(70e12, 24 * GIB, 0.6e12, 32e9, 6.25e9, 32e9),
    "RTX 4090": GPU(165e12, 24 * GIB, 1.008e12, 32e9, 6.25e9, 32e9),
}


def find_gpu(name: str) -> GPU | None:
    """Return the GPU of a name as the driver reports it ("NVIDIA H100 80GB HBM3"), or None for an unknown one."""
    return next((gpu for key, gpu in GPUS.items() if key.lower() in name.lower()), None)


def local_gpu_memory() -> int | None:
    """Return the bytes of the smallest GPU of this machine, or None where the driver's tool is not there to ask."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        return min(int(mebibytes) for mebibytes in told) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
