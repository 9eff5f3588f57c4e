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
from ..grown import GrownWords, replace_module, words_of


class Tokens(Adapter):
    """New words behind the base's vocabulary, each one vector; the others cannot change."""

    kind: ClassVar[str] = "tokens"
    words: Mapping[str, str] = Field(min_length=1)
    """Each new word, such as `<toy>`, and the words that its vector begins as the mean of."""

    @property
    def new_words(self) -> tuple[str, ...]:
        return tuple(self.words)

    def put(self, site: Site) -> Iterable[nn.Parameter]:
        old: nn.Module | None = words_of(site.model)
        if old is None:
            raise RecipeError(
                "adapter 'tokens' teaches a denoiser with a text encoder of its own (model.text: "
                "blocks or clip) new words; the model has none, and frozen encoders (model.texts) "
                "learn no words. Use adapter 'lora' there."
            )
        if site.text is None:
            raise RecipeError("adapter 'tokens' needs the run's tokenizer.")
        if isinstance(old, GrownWords):
            raise RecipeError("two adapters 'tokens': name all new words in one.")
        if not isinstance(old, nn.Embedding):
            raise RecipeError(
                "adapter 'tokens': another adapter stands beside the word embedding already. Take "
                "that out of the other's `targets`."
            )
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
