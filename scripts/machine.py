"""Which machine a figure comes from."""

import os
import platform
from pathlib import Path


def describe(device: str = "cpu") -> str:
    """:return: the processor, its cores, and what computed, if that was not the processor"""
    words = [_processor(), f"{os.cpu_count()} cores"]
    if device == "cuda":
        import torch as th

        words.append(th.cuda.get_device_name())
    elif device != "cpu":
        words.append(device)
    return ", ".join(words)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
