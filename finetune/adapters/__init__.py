"""Table of contents: one line an adapter, sorted. Nothing happens at import."""

from .bias import Bias as Bias
from .dora import Dora as Dora
from .full import Full as Full
from .loha import Loha as Loha
from .lokr import Lokr as Lokr
from .lora import Lora as Lora
from .tokens import Tokens as Tokens
