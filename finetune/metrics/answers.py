"""Accuracy of an answer against those of several people, as the VQA challenge counts it.

Antol et al., ICCV 2015; `vqaEval.py` of GT-Vision-Lab/VQA. That code normalises an answer of the
model fully, and of people's answers only the punctuation and only where they differ; here, as
later re-implementations do, all answers are normalised fully, so that "Two" and "2" agree.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # the official code passes re.UNICODE, which is 32, where the count belongs

# Words that the official table knows without their apostrophe. Its entries with capitals never
# match, because the words are lowered before, and are left out.
_ONE = """
'twas ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's
how'd how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've wasn't
we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's
who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Words of which it knows both spellings that lack one of the two apostrophes.
_TWO = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
_ODD = {
    "somebody'd": "somebodyd",  # the wrong way round, and official
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
}


@functools.lru_cache(maxsize=1 << 16)  # each step meets the same answers again
def normal(answer: str) -> str:
    """An answer as the challenge compares it: lower case, no articles or punctuation, digits.

    "The T-shirt." is "t shirt", "Two dogs, a cat" is "2 dogs cat".
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = (_DIGITS.get(word, word) for word in _unmarked(text).lower().split())
    table = _contractions()
    return " ".join(table.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, people: Sequence[str]) -> float:
    """Accuracy of a normal answer against the normal answers of people, 0 to 1.

    Each person is left out once; of the others three must agree with the answer for it to be right,
    fewer count in part; the mean over who is left out is the accuracy. Of ten people, 1, 2, 3 and 4
    who agree are 0.3, 0.6, 0.9 and 1. Of two or three people all others must agree, and one
    person's answer is right or wrong; of nobody's, nothing is right.
    """
    if not people:
        return 0.0
    agree, others = people.count(answer), len(people) - 1
    if not others:
        return float(agree)
    enough = min(3, others)
    without_one_of_them = agree * min(1.0, (agree - 1) / enough)
    without_another = (len(people) - agree) * min(1.0, agree / enough)
    return (without_one_of_them + without_another) / len(people)


def targets(people: Sequence[str]) -> dict[str, float]:
    """Accuracy that each answer which anybody gave would have: the soft targets of training."""
    return {answer: accuracy(answer, people) for answer in Counter(people)}


def _unmarked(text: str) -> str:
    """Without punctuation: a mark beside a space goes, one inside a word becomes a space.

    A text with a number such as 1,000 loses all marks without a space, wherever they stand.
    """
    thousands = _THOUSANDS.search(text) is not None
    found = text
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside or thousands else " ")
    return _PERIOD.sub("", found, count=_PERIODS)


@functools.cache
def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _ONE.split()}
    for word in _TWO.split():
        start, middle, end = word.split("'")
        table[f"{start}{middle}'{end}"] = table[f"{start}'{middle}{end}"] = word
    return table | _ODD
