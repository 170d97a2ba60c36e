"""How much memory has been used, in words."""

import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: on CUDA those of its tensors, else the whole process's; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on this system
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def readable(size: int) -> str:
    """Bytes in a word.

    Example:
        >>> readable(2_300_000_000), readable(850)
        ('2.3 GB', '0.00085 MB')
    """
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
