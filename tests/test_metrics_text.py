"""Caption metrics against coco-caption's: golden numbers of its scorers and of its Java tokeniser.

`golden/captions.json` and `golden/ptb.json` say where they come from. pycocoevalcap is not a
dependency (its wheel is 104 MB, nearly all of it METEOR and SPICE); where it is installed
(`pip install --no-deps pycocoevalcap`) and Java is there, the tokenisers are compared live.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import timm
from hypothesis import strategies as st

from diptych.errors import DataError, RecipeError
from diptych.finetune.metrics.bleu import bleu
from diptych.finetune.metrics.captions import score_captions
from diptych.finetune.metrics.cider import cider_d, weights
from diptych.finetune.metrics.ptb import tokenize
from diptych.finetune.metrics.rouge import longest_common, rouge_l

GOLDEN = Path(__file__).parent / "golden"
LEFT_OUT = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
EXACT = 1e-12


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "captions.json").read_text())


@pytest.fixture(scope="module")
def sides(golden: dict[str, Any]) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Candidates and references as Java tokenised them."""
    split = [[text.split() for text in texts] for texts in golden["tokens"]]
    return [texts[0] for texts in split], [texts[1:] for texts in split]


def test_the_tokens_are_those_of_java(golden: dict[str, Any]) -> None:
    ours = [[" ".join(tokenize(text)) for text in texts] for texts in golden["captions"]]
    assert ours == golden["tokens"]
    assert sum(len(texts) - 1 for texts in golden["tokens"]) >= 1000


def test_odd_texts_are_split_as_in_java() -> None:
    """And three known ones are not, in which nobody writes a caption."""
    known = json.loads((GOLDEN / "ptb.json").read_text())
    for text, tokens in known["same"]:
        assert " ".join(tokenize(text)) == tokens
    for text, tokens in known["differ"]:
        assert " ".join(tokenize(text)) != tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("हिन्दी वाक्य", "हिन्दी वाक्य"),
        ("नमस्ते दुनिया। एक कुत्ता", "नमस्ते दुनिया । एक कुत्ता"),
        ("ภาษาไทย คนหนึ่ง", "ภาษาไทย คนหนึ่ง"),
        ("مُحَمَّد", "مُحَمَّد"),
        ("cafe\u0301 noir", "cafe\u0301 noir"),
        ("क\u0301क's", "क\u0301क 's"),
        ("x\u20d7y \u2764\ufe0f love", "x y \u2764 love"),
        ("x\u0614y", "x \u0614 y"),
        ("a -- b ---- c", "a b c"),
        ("a ----- b------c", "a ----- b ------ c"),
    ],
)
def test_marks_and_dashes_are_as_in_java(text: str, tokens: str) -> None:
    assert " ".join(tokenize(text)) == tokens


def test_bleu_is_that_of_coco_caption(golden: dict[str, Any], sides: Any) -> None:
    found = bleu(*sides)
    assert found.corpus == pytest.approx(golden["bleu"], EXACT, EXACT)
    for ours, theirs in zip(found.each, golden["bleu_each"], strict=True):
        assert ours == pytest.approx(theirs, EXACT, EXACT)


def test_rouge_is_that_of_coco_caption(golden: dict[str, Any], sides: Any) -> None:
    each = [rouge_l(*pair) for pair in zip(*sides, strict=True)]
    assert each == pytest.approx(golden["rouge_each"], EXACT, EXACT)


def test_cider_is_that_of_coco_caption(golden: dict[str, Any], sides: Any) -> None:
    each = cider_d(*sides)
    assert each == pytest.approx(golden["cider_each"], EXACT, EXACT)
    assert sum(each) / len(each) == pytest.approx(golden["cider"], EXACT, EXACT)


def test_the_whole_way_from_captions_is_too(golden: dict[str, Any]) -> None:
    tokens = [[tokenize(text) for text in texts] for texts in golden["captions"]]
    each = cider_d([texts[0] for texts in tokens], [texts[1:] for texts in tokens])
    assert each == pytest.approx(golden["cider_each"], EXACT, EXACT)


def test_all_scores_of_a_test_at_once(golden: dict[str, Any]) -> None:
    texts = golden["captions"]
    found = score_captions([one[0] for one in texts], [one[1:] for one in texts])
    wanted = [*golden["bleu"], golden["rouge"], golden["cider"]]
    assert list(found) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert list(found.values()) == pytest.approx(wanted, EXACT, EXACT)


def test_weights_of_other_captions_serve_as_a_reward(sides: Any) -> None:
    """A caption's reward does not depend on what else is in its batch."""
    candidates, references = sides
    known = weights(references)
    assert known.score(candidates[3], references[3]) == cider_d(*sides)[3]
    assert known.score(references[3][0], references[3]) > known.score(
        references[4][0], references[3]
    )
    assert known.score([], references[3]) == 0


def test_empty_sentences_and_a_perfect_one() -> None:
    same = ["a", "red", "circle", "on", "blue"]
    assert bleu([same], [[same]]).corpus == pytest.approx((1, 1, 1, 1))
    assert bleu([[]], [[same]]).corpus == (0, 0, 0, 0)
    assert rouge_l(same, [same]) == pytest.approx(1)
    assert rouge_l([], [same]) == 0
    others = [[same], [["x"]], [["y", "z"]]]
    assert cider_d([same, ["x"], []], others) == pytest.approx((10, 2.5, 0))


def test_a_candidate_without_references_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one"):
        bleu([["a"]], [[]])
    with pytest.raises(DataError, match="at least one"):
        rouge_l(["a"], [])
    with pytest.raises(DataError, match="at least one"):
        cider_d([["a"]], [[]])
    with pytest.raises(DataError, match="one candidate an image"):
        cider_d([["a"]], [])


@hypothesis.given(st.lists(st.sampled_from("abc"), max_size=8), st.text("abc", max_size=8))
def test_longest_common_subsequence(left: list[str], right: str) -> None:
    subsequences = {""}
    for token in left:
        subsequences |= {known + token for known in subsequences}

    def within(short: str) -> bool:
        rest = iter(right)
        return all(token in rest for token in short)

    assert longest_common(left, list(right)) == max(map(len, filter(within, subsequences)))


@hypothesis.given(st.text(max_size=60))
def test_any_text_is_tokenised(text: str) -> None:
    tokens = tokenize(text)
    assert all(token and not any(c.isspace() for c in token) for token in tokens)


def test_java_agrees_on_real_sentences(tmp_path: Path) -> None:
    package = pytest.importorskip("pycocoevalcap")
    java = shutil.which("java")
    if java is None:
        pytest.skip("no Java here")
    definitions = Path(timm.__file__).parent / "data/_info/imagenet_synset_to_definition.txt"
    texts = [line.split("\t")[1] for line in definitions.read_text().splitlines()[::10]]
    (tmp_path / "texts").write_text("\n".join(texts))
    jar = Path(package.__path__[0]) / "tokenizer/stanford-corenlp-3.4.1.jar"
    command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", str(tmp_path / "texts")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = [" ".join(w for w in x.split() if w not in LEFT_OUT) for x in done.stdout.splitlines()]
    ours = [" ".join(tokenize(text)) for text in texts]
    assert len(ours) > 2000
    assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == []


def test_meteor_is_asked_for() -> None:
    pytest.importorskip("pycocoevalcap")
    if not shutil.which("java"):
        pytest.skip("METEOR runs in Java")
    texts = [["a dog runs on the beach"], ["two cats sleep under a table", "cats that sleep"]]
    same = score_captions([one[0] for one in texts], texts, ["meteor"])["meteor"]
    near = score_captions(["a dog running on a beach", "cats sleep"], texts, ["meteor"])["meteor"]
    far = score_captions(["a red car", "nothing"], texts, ["meteor"])["meteor"]
    assert same == pytest.approx(1) and 0.2 < near < 0.9 and far < 0.1
    with pytest.raises(DataError, match="get_stanford_models"):
        score_captions([one[0] for one in texts], texts, ["spice"])


def test_what_java_metrics_need_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DataError, match="METEOR runs in Java, and there is no `java`"):
        score_captions(["a"], [["a"]], ["meteor"])
    with pytest.raises(RecipeError, match="'meteo'"):
        score_captions(["a"], [["a"]], ["meteo"])
    monkeypatch.setattr("shutil.which", lambda name: name)
    for name in ("pycocoevalcap", "pycocoevalcap.spice.spice"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match="pip install --no-deps pycocoevalcap"):
        score_captions(["a"], [["a"]], ["spice"])
