"""Read off what the figures depend on."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from refold.bench.runtimes import RUNTIMES
from refold.bench.table import Machine
from refold.equivalence import native_dtype
from refold.inputs import Arguments, tensors

_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine(model: nn.Module, inputs: Arguments, runtimes: tuple[str, ...]) -> Machine:
    """Return processor, threads, device, precision and the versions of what ran."""
    first = tensors(inputs)[0]
    device = first.device
    versions = {"torch": str(torch.__version__)}
    for package in (RUNTIMES[runtime].package for runtime in runtimes):
        if package is not None:
            with suppress(metadata.PackageNotFoundError):  # the table says why it was skipped
                versions[package] = metadata.version(package)
    is_cuda = device.type == "cuda"
    return Machine(
        processor=_processor(),
        system=f"{platform.system()} {platform.machine()}",
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if is_cuda else device.type,
        dtype=str(native_dtype(model) or first.dtype).removeprefix("torch."),
        versions=versions,
    )


def _processor() -> str:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
