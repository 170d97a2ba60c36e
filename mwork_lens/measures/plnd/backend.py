"""Which of three implementations computes a layer's scores: compiled loops, Triton kernels or plain tensor operations.

The plain ones are the reference, and serve every device. ``MWORK_LENS_BACKEND`` forces one of the three.
"""

import importlib.util
import os
from functools import cache
from typing import Literal, cast, get_args

import torch

from ...text.choices import require_choice
from .compiled import is_cpu_float32

Backend = Literal["compiled", "triton", "plain"]
VARIABLE = "MWORK_LENS_BACKEND"


def forced() -> Backend | None:
    """What the environment asks for; with ``triton`` on a machine without a GPU, its interpreter is used.

    Raises:
        ValueError: for another name, for Triton where it is not installed, or after it was imported as a compiler.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    require_choice(VARIABLE, name, get_args(Backend))
    if name == "triton" and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{VARIABLE}='triton' needs Triton's interpreter on a machine without a GPU, which must be chosen before "
            "anything imports Triton: set the variable before mwork_lens is imported, or TRITON_INTERPRET=1."
        )
    if name == "triton" and not has_triton():
        raise ValueError(f"{VARIABLE}='triton', but Triton is not installed: pip install triton.")
    return cast(Backend, name)


@cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def backend_of(tensor: torch.Tensor) -> Backend:
    """What computes scores from such numbers; in double precision always plain tensor operations.

    Raises:
        ValueError: where compiled loops are asked for beside a GPU's numbers, or Triton's programs elsewhere.
    """
    wanted, device = forced(), tensor.device.type
    if tensor.dtype == torch.float64 or wanted == "plain":
        return "plain"
    if wanted == "triton" and device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ValueError(
            f"{VARIABLE}='triton': its programs need a model on a GPU, and this one is on {device}; on a CPU Triton's "
            "interpreter runs them, if TRITON_INTERPRET=1 is set before anything imports Triton."
        )
    if wanted == "triton" or (device == "cuda" and wanted is None and has_triton()):
        return "triton"
    if wanted == "compiled" and device != "cpu":
        raise ValueError(f"{VARIABLE}='compiled': compiled loops need a model on a CPU, and this one is on {device}.")
    return "compiled" if is_cpu_float32(tensor) else "plain"
