"""Vocabularies that are learned: the same from the same texts, and no larger than asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer, Tokenizer, processors

from diptych.data import tokens
from diptych.errors import DataError

TEXTS = [
    "an unlikely goldfish",
    "unlike the red fish",
    "what colour is the gold?",
    "日本の fish",
] * 3
LEARN = (
    "import sys, json; from diptych.data import tokens; print(tokens.learn(*json.load(sys.stdin)))"
)


def test_every_process_learns_the_same_file() -> None:
    told = json.dumps([TEXTS, 70])  # few enough that ties decide what is in it
    texts = {
        subprocess.run(
            [sys.executable, "-P", "-c", LEARN],
            input=told,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(4)
    }
    assert texts == {tokens.learn(iter(TEXTS), 70) + "\n"}


@pytest.mark.parametrize("size", [9, 30, 60, 500])
def test_it_is_no_larger_than_asked(size: int) -> None:
    text = tokens.from_text(tokens.learn(TEXTS, size), 16)
    assert text.size <= size
    assert sorted(text.tokenizer.get_vocab().values()) == list(range(text.size))
    assert text.special == (0, 1, 2, 3, 4)


def test_letters_are_no_special_tokens() -> None:
    text = tokens.from_text(tokens.learn(TEXTS, 60), 16)
    assert text.tokenizer.token_to_id("##f") is not None
    assert "##f" not in text.tokenizer.encode("##f").tokens, "as a text it is three characters"
    ids, real = text.encode(["unlikely gold fish"])
    assert text.decode(ids[0][real[0]].tolist()) == "unlikely gold fish"


def test_a_file_without_a_decoder_says_words_too() -> None:
    learned = json.loads(tokens.learn(TEXTS, 40))
    assert learned["decoder"]["type"] == "WordPiece", "the file says so to other tools"
    learned["decoder"] = None
    text = tokens.from_text(Tokenizer.from_str(json.dumps(learned)).to_str(), 32)
    ids, _ = text.encode(["unlike the gold"])
    assert len(ids[0].nonzero()) > 5, "its words are in pieces"
    assert text.decode(ids[0].tolist()) == "unlike the gold"


def test_pieces_are_those_that_the_model_marks() -> None:
    told = json.loads(tokens.learn(TEXTS, 70))
    before = tokens.from_text(json.dumps(told), 8).joined
    told["model"]["continuing_subword_prefix"] = "@@"
    vocabulary = told["model"]["vocab"].items()
    told["model"]["vocab"] = {name.replace("##", "@@"): id for name, id in vocabulary}
    assert before and tokens.from_text(json.dumps(told), 8).joined == before
    told["model"] = {"type": "BPE", "vocab": told["model"]["vocab"], "merges": []}
    assert tokens.from_text(json.dumps(told), 8).joined is None


def test_a_text_that_nothing_begins_and_ends_is_refused(tmp_path: Path) -> None:
    bare = BertWordPieceTokenizer()
    bare.train_from_iterator(TEXTS, vocab_size=100, show_progress=False)
    bare.save(f"{tmp_path}/bare.json")
    with pytest.raises(DataError, match=r"bare.json makes \[\] .*TemplateProcessing.*'\[CLS\]', 2"):
        tokens.load(f"{tmp_path}/bare.json", 8)
    whole = Tokenizer.from_file(f"{tmp_path}/bare.json")
    for ends in (
        processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        ),
        processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    ):
        whole.post_processor = ends  # pyright: ignore[reportAttributeAccessIssue]
        text = tokens.from_text(whole.to_str(), 8)
        ids_BL, real_BL = text.encode(["the fish"])
        assert ids_BL[0, real_BL[0]].tolist()[::3] == [2, 3]
        again = tokens.from_text(text.tokenizer.to_str(), 5)  # as a run's folder has it, padded
        assert again.encode([""])[0].tolist() == [[2, 3, 0, 0, 0]]
