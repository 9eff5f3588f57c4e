"""A model of open_clip from a folder that open_clip itself saved."""

from pathlib import Path
from typing import Any


def opened(folder: Path, device: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder with open_clip_config.json and open_clip_model.safetensors, in
    32 bits."""
    import open_clip  # imports for seconds

    name = f"local-dir:{folder}"
    made: Any = open_clip.create_model(name, device=device)
    return made.float().eval(), open_clip.get_tokenizer(name)
