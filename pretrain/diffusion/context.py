"""What steers a denoiser: a text encoder that is trained with it, and numbers as vectors.

B rows, L tokens, S = any sequence, D width.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..reader import States


class Attention(nn.Module):
    """Multi-head attention of one sequence to itself or to another; SDPA."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask, self.answer = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor, other_BLD: Tensor, real_BL: Tensor | None = None) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.ask(x_BSD), *self.answer(other_BLD).chunk(2, dim=2))
        )
        mask = None if real_BL is None else real_BL[:, None, None, :]
        heads_BHSD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(heads_BHSD.transpose(1, 2).flatten(2))


class TextContext(nn.Module):
    """Word embeddings -> states (B, L, D): pre-LN transformer blocks, as latent diffusion's own."""

    def __init__(self, width: int, tokens: int, depth: int, heads: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(tokens, width))
        self.attend = nn.ModuleList(Attention(width, heads) for _ in range(depth))
        self.think = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        nn.init.normal_(self.places, std=0.02)

    def forward(self, words_BLD: Tensor, real_BL: Tensor) -> Tensor:
        x_BLD = words_BLD + self.places[: words_BLD.shape[1]]
        for number, (attend, think) in enumerate(zip(self.attend, self.think, strict=True)):
            normed = self.norms[2 * number](x_BLD)
            x_BLD = x_BLD + attend(normed, normed, real_BL)
            x_BLD = x_BLD + think(self.norms[2 * number + 1](x_BLD))
        return self.norms[-1](x_BLD)


class FrozenContext(nn.Module):
    """States of frozen encoders -> one sequence (B, L, D), end to end, each times its weight.

    A single encoder of the right width goes in as it is, as in Stable Diffusion.
    """

    def __init__(self, widths: Sequence[int], weights: Sequence[float], width: int) -> None:
        super().__init__()
        alone = len(widths) == 1
        self.weights = tuple(weights)
        self.enter = nn.ModuleList(
            nn.Identity() if alone and each == width else nn.Linear(each, width) for each in widths
        )

    def forward(self, contexts: Sequence[States]) -> tuple[Tensor, Tensor]:
        sequences = [
            weight * enter(states.tokens_BLD)
            for weight, enter, states in zip(self.weights, self.enter, contexts, strict=True)
        ]
        return torch.cat(sequences, 1), torch.cat([states.real_BL for states in contexts], 1)


class ClipContext(nn.Module):
    """transformers' `CLIPTextModel`: ids -> its last states (B, L, D), padding read like words."""

    def __init__(self, width: int, tokens: int, depth: int, heads: int, vocabulary: int) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel  # for seconds

        super().__init__()
        made: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                max_position_embeddings=tokens,
                bos_token_id=0,  # these three are for CLIP's pooled state, which nothing reads
                eos_token_id=0,
                pad_token_id=0,
            )
        )
        self.clip = made

    def forward(self, tokens_BL: Tensor) -> Tensor:
        return self.clip(input_ids=tokens_BL).last_hidden_state


def waves(values: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Cosines and sines of `values` (N,) at `width` / 2 frequencies each, (N, width) float32."""
    half = width // 2
    steps = torch.arange(half, device=values.device, dtype=torch.float32)
    angles = values.float()[:, None] * torch.exp(-math.log(longest) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], 1)
