"""Textual inversion (Gal et al., ICLR 2023): new words, whose vectors alone are trained.

B rows, L tokens, V words of the base, N new words, D width.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from ...errors import RecipeError
from ...pretrain.adapter import Adapter, Site
from ..grown import GrownWords, replace_module


class Tokens(Adapter):
    """New words behind the base's vocabulary, each one vector; the others cannot change."""

    kind: ClassVar[str] = "tokens"
    words: Mapping[str, str] = Field(min_length=1)
    """Each new word, such as `<toy>`, and the words that its vector begins as the mean of."""

    @property
    def new_words(self) -> tuple[str, ...]:
        return tuple(self.words)

    def put(self, site: Site) -> Iterable[nn.Parameter]:
        if not (hasattr(site.model, "context") and hasattr(site.model, "words")):
            raise RecipeError(
                "adapter 'tokens' teaches a denoiser with a text encoder of its own new words; "
                "the model is none."
            )
        if site.text is None:
            raise RecipeError("adapter 'tokens' needs the run's tokenizer.")
        old: nn.Embedding = site.model.words
        if isinstance(old, GrownWords):
            raise RecipeError("two adapters 'tokens': name all new words in one.")
        rows: list[torch.Tensor] = []
        for word, like in self.words.items():
            found = site.text.tokenizer.encode(like, add_special_tokens=False)
            ids = [id for id, real in zip(found.ids, found.attention_mask, strict=True) if real]
            unknown = site.text.tokenizer.token_to_id("[UNK]") in ids
            if not ids or unknown or max(ids) >= old.num_embeddings:
                raise RecipeError(f"adapter 'tokens': {word!r} begins as no known word ({like!r}).")
            rows.append(old.weight[torch.tensor(ids, device=old.weight.device)].mean(0))
        grown = GrownWords(old, torch.stack(rows).detach())
        replace_module(site.model, old, grown)
        return [grown.rows]
