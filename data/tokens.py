"""Text to ids, with the tokenizers library; the vocabulary travels as one tokenizer.json."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor

from ..errors import DataError
from . import storage

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET = 1000  # characters at most; WordPiece spells the others [UNK]


@dataclass(frozen=True)
class Text:
    """A tokenizer that pads and cuts to one length."""

    tokenizer: Tokenizer
    length: int

    @property
    def size(self) -> int:
        """Ids in the vocabulary."""
        return self.tokenizer.get_vocab_size()

    @property
    def mask(self) -> int:
        """Id of the mask token."""
        return self._id("[MASK]")

    @property
    def special(self) -> tuple[int, ...]:
        """Ids that stand for no word."""
        return tuple(self._id(token) for token in _SPECIAL)

    @functools.cached_property
    def joined(self) -> tuple[int, ...] | None:
        """Ids of WordPiece's pieces that go on with the word before them; None of other models,
        whose pieces do not say so."""
        model, vocabulary = self.tokenizer.model, self.tokenizer.get_vocab()
        if not isinstance(model, models.WordPiece):
            return None
        mark: str = model.continuing_subword_prefix
        return tuple(sorted(id for token, id in vocabulary.items() if token.startswith(mark)))

    def grown(self, words: Sequence[str]) -> "Text":
        """The same with new words behind all others, each one id, found as they are written.

        Raises:
            DataError: one is a word already.
        """
        if not words:
            return self
        known = [word for word in words if self.tokenizer.token_to_id(word) is not None]
        if known:
            raise DataError(
                f"{known[0]!r} is in the vocabulary already. Name a new word, such as '<thing>'."
            )
        larger = Tokenizer.from_str(self.tokenizer.to_str())
        larger.add_tokens([AddedToken(word, normalized=False) for word in words])
        ids = [larger.token_to_id(word) for word in words]
        if ids != list(range(self.size, self.size + len(words))):
            raise DataError(f"the tokenizer's ids have gaps: the new words would be {ids}.")
        return Text(larger, self.length)

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        assert found is not None  # `from_text` refuses a tokenizer without it
        return found

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns (ids (B, L) int64, real (B, L) bool); longer texts are cut."""
        found = self.tokenizer.encode_batch(list(texts))
        ids_BL = torch.tensor([encoding.ids for encoding in found])
        return ids_BL, torch.tensor([encoding.attention_mask for encoding in found]).bool()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.tokenizer.decode(list(ids))


def learn(texts: Iterable[str], size: int = 8000) -> str:
    """A WordPiece vocabulary of at most `size` ids learned from texts, as the text of a file.

    The same texts give the same file. The library numbers what it meets inside words in the order
    of a hash table, and breaks ties between pairs by these numbers; here all have theirs before.
    """
    texts = list(texts)
    bare = _like_bert(models.WordPiece(unk_token="[UNK]"))
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*_SPECIAL, *_letters(bare, texts, size - len(_SPECIAL))],
        limit_alphabet=0,  # no letters but these
        show_progress=False,
    )
    bare.train_from_iterator(texts, trainer)
    tokenizer = _like_bert(models.WordPiece(bare.get_vocab(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(_SPECIAL))  # letters are none
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, _SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer.to_str()


def _like_bert(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _letters(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> list[str]:
    """The most frequent characters of texts, and as pieces those that go on with a word; sorted."""
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    assert normalizer is not None and splitter is not None
    words = Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for letter in word:
            counts[letter] += times
    inside = {letter for word in words for letter in word[1:]}
    kept: list[str] = []
    for letter in sorted(counts, key=lambda letter: (-counts[letter], letter))[:_ALPHABET]:
        forms = [letter, f"##{letter}"] if letter in inside else [letter]
        kept += forms if len(kept) + len(forms) <= room else []
    return sorted(kept, key=lambda form: (len(form), form))


def load(url: str, length: int) -> Text:
    """The tokenizer of a tokenizer.json in a bucket, on a disk, or in a model's repository.

    A name without a scheme and without `.json` is a repository of the hub, such as
    `bert-base-uncased`.

    Raises:
        DataError: not a tokenizer file, or one without BERT's special tokens around each text.
    """
    if url.endswith(".json"):
        return from_text(storage.read(url).decode(), length, source=url)
    try:
        tokenizer = Tokenizer.from_pretrained(url)
    except Exception as err:  # the library raises bare Exception
        raise DataError(f"{url!r}: no tokenizer of that name on the hub: {err}") from err
    return from_text(tokenizer.to_str(), length, source=url)


@functools.lru_cache(maxsize=4)
def from_text(text: str, length: int, *, source: str = "tokenizer.json") -> Text:
    """The tokenizer that the text of a tokenizer.json describes."""
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as err:  # the library raises bare Exception
        raise DataError(f"{source} is not a tokenizer.json: {err}") from err
    missing = [token for token in _SPECIAL if tokenizer.token_to_id(token) is None]
    if missing:
        raise DataError(f"{source} lacks the special tokens {missing}; use a BERT-like tokenizer.")
    _require_ends(tokenizer, source)
    if tokenizer.decoder is None:  # pieces would be said as they are: "gold ##fish"
        tokenizer.decoder = decoders.WordPiece()
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), length=length)
    tokenizer.enable_truncation(length)
    return Text(tokenizer, length)


def _require_ends(tokenizer: Tokenizer, source: str) -> None:
    """Refuses one that leaves out what stands for a text, and what ends it."""
    tokenizer.no_padding()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    if (found := tokenizer.encode("").ids) != [id for _, id in ends]:
        raise DataError(
            f"{source} makes {found} of an empty text, not [CLS] and [SEP]. Set "
            "tokenizer.post_processor = tokenizers.processors.TemplateProcessing("
            f"single='[CLS] $A [SEP]', special_tokens={ends}), and save it again."
        )
