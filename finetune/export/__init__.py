"""Table of contents: one line an export target, sorted. Nothing happens at import.

A target is a module with `NAME`, which `--to` takes; `TAKES`, a sentence of what it takes;
`require(run)`, which refuses the others; `write(out, run, task, text, facts)`; and
`prove(out, run, task, text, batch)`, which has a clean process compute the same and returns what
its proof.json holds. With `READS = False` its proof reads no samples, and `batch` is none.
`target.Target` says it in types, and docs/export.md tells what each makes.
"""

from . import autoencoder as autoencoder
from . import clip as clip
from . import controlnet as controlnet
from . import denoiser_onnx as denoiser_onnx
from . import diffusers_lora as diffusers_lora
from . import embedding as embedding
from . import folder as folder
from . import hub as hub
from . import kohya as kohya
from . import onnx as onnx
from . import peft_folder as peft_folder
from . import pipe as pipe
from . import single_file as single_file
from . import t2i_adapter as t2i_adapter
