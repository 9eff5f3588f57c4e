"""Captions to tokens by the rules of the Penn Treebank tokeniser that coco-caption runs in Java.

Its output was observed, not its code read: words, contractions, numbers and abbreviations split
where it splits. At each place the longest rule wins, and of equals the first. Punctuation that
coco-caption leaves out of its metrics is left out here too; brackets stay (`-lrb-`), since it
compares them in capitals after they were lowered.
"""

import re
import unicodedata
from collections.abc import Iterator

# Combining marks that are letters there, such as the vowels of Hindi; others part words.
_KEPT = """
0300-05c7 0615-065e 0670-07f3 0900-0903 093c-094e 0951-0955 0962-09e3 0a01-0a4d 0a81-0acd 0b82-0bcd
0c01-0c03 0c3e-0c56 0d3e-0d48 0e31-0ecd 1885-1886
"""
_SPANS = [[int(end, 16) for end in span.split("-")] for span in _KEPT.split()]
_MARKS = [n for n in range(0x300, 0x10000) if unicodedata.category(chr(n)) in ("Mn", "Mc")]
_ALONE = 0x0614  # a token
_MARK = "".join(chr(n) for n in _MARKS if any(first <= n <= last for first, last in _SPANS))

_LETTER = rf"(?:[^\W\d_\u00b2\u00b3\u00b9\u2070-\u209c\u2150-\u218b]|[{_MARK}])"  # no small digits
_MORE = rf"(?:[^\W_]|[{_MARK}])"
_WORD = rf"(?:{_LETTER}|\d)+"
_PART = rf"(?:{_LETTER}+(?:-{_LETTER}+)*|\d+)"
_NOT_IN_URL = r"""\s"<>|()"""
_URL_END = _NOT_IN_URL + r".,;:!?'\]"

# These keep their period anywhere, and are rarely anything else.
_TITLES = """
adm atty attys brig capt cmdr col comdr det dr drs esq gen gov govs hon jr lieut lt maj messrs mlle
mme mr mrs ms pfc ph pres prof profs pvt rep reps rev sen sens sgt spc sr supt supts wm
al ala alex apr ariz assn assoc asst aug ave bancorp bhd bldg blvd bros calif cf cie co colo conn
corp cos cpl ct dak dec dept est etc ext feb fla fri ft ga inc ind intl jan jos jul jun kan kans ky
ltd mar md mfg mich minn mo mon mont mt natl neb nev nov oct okla penn plc pte pty rd rt sep sept
seq sq st ste sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wyo
"""
# These are words too, and keep it only with a capital ("Del." the state, "del." the word).
_STATES = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"
_COUNTED = "art arts ca fig figs no nos op pp prop sect sects"  # and these before a number
_ANY_CASE = "(?i:" + "|".join(_TITLES.split()) + ")"
_CAPITAL = "(?:" + "|".join(f"{word}|{word.upper()}" for word in _STATES.split()) + ")"
_BEFORE_NUMBER = "(?i:" + "|".join(_COUNTED.split()) + ")"

# Each rule is one token, or one a group.
_RULES = [
    re.compile(rule)
    for rule in (
        # Contractions.
        rf"({_LETTER}*?)((?i:n't))(?!{_LETTER})",
        rf"(?i:'(?:s|re|ve|ll|d|m))(?!{_LETTER})",
        rf"(?i:(can)(not)|(gon|wan)(na)|(got)(ta)|(lem|gim)(me))(?!{_MORE})",
        rf"(?i:('t)(?:(is|was)))(?!{_LETTER})",
        # Words with an apostrophe.
        rf"(?i:'n|'em|'till?|'cause|'[2-9]0s|ol'|somethin'|dunkin'|[dl]')(?!{_LETTER})|'\d\d(?!\S)",
        r"(?i:'n'|s'mores|nor'easter|c'mon|ev'ry|li'l|nat'l|[yj]')",
        rf"(?:[A-HJ-XZ]|(?i:[cdlo]|qu))'{_LETTER}{{2,}}",
        rf"{_LETTER}+[aeiouyAEIOUY]'[aeiouA-Z]{_LETTER}*",
        rf"{_LETTER}+-[oO]'{_LETTER}{{2,}}",
        # Words.
        rf"(?!\d{{5,}}-\d){_WORD}(?:[-_\u2010\u2011]{_WORD})*",
        rf"{_PART}(?:/{_PART}){{1,2}}",
        rf"{_LETTER}+(?:[.!?]{_LETTER}+)+",
        r"[A-Z]+(?:&[A-Z]+)+|[A-Z]{1,2}\$|[cC]\+\+|[cCfF]#|&#\d+;",
        # Abbreviations.
        rf"{_ANY_CASE}\.|{_CAPITAL}\.|{_LETTER}(?:\.{_LETTER})*\.",
        r"(?i:ph|ed)\.[Dd]\.",
        rf"{_BEFORE_NUMBER}\.(?=\s?\d)",
        # Numbers.
        r"[-+]?\d+(?:[.,:]\d+)*|[-+]?(?:[.,:]\d+)+",
        rf"\d+[.,]\d+(?:-{_LETTER}+)+",
        r"\d{1,2}/\d{1,2}/\d{1,4}|(?:\d{1,4}-)?\d{1,4}/\d{1,4}",
        # What the web writes.
        r"<(?:[!?][A-Za-z-][^>]*|/[A-Za-z][\w:.-]*|[A-Za-z][\w:.-]*"
        r"""(?: +[A-Za-z][\w:.-]*(?: *= *(?:'[^']*'|"[^"]*"))?)*) */?>""",
        rf"https?://[^{_NOT_IN_URL}]*[^{_URL_END}]",
        rf"(?:{_WORD}\.)+(?:com|net|org|edu)(?:/(?:[^{_NOT_IN_URL}]*[^{_URL_END}])?)?(?!{_MORE})",
        rf"[^\W_](?:[\w.+-]*)@(?:{_WORD}[.-])*{_WORD}",
        r"@[A-Za-z_]\w*|#[A-Za-z]+",
        rf">?[:;=](?:['o-])?[()](?!{_MORE})|[:;=]-?[DPpO3\[\]{{](?!{_MORE})|\^_\^",
        # The rest.
        r"[!?]+|\*+|_+|#+|-+|\.{3,}|<<|>>|[^\w\s]|\w",
    )
]
_PLAIN = str.maketrans(
    {
        **{chr(n): " " for n in _MARKS if chr(n) not in _MARK and n != _ALONE},
        **dict.fromkeys("\u2018\u2019\u201b\u2039\u203a", "'"),
        **dict.fromkeys("\u201c\u201d\u00ab\u00bb\u0093\u0094", '"'),
        **dict.fromkeys("\u2012\u2013\u2014\u2015\u2043", " -- "),
        **dict.fromkeys("\u200b\u200c\u200d\ufeff", " "),
        "\u00bd": " 1/2 ",
        "\u00bc": " 1/4 ",
        "\u00be": " 3/4 ",
        "\u2153": " 1/3 ",
        "\u2154": " 2/3 ",
        "\u00ad": "",
        "\u2026": " ... ",
        "\ufffd": " ",
        "\u00a3": "#",
        "\u20ac": "$",
        "\u00a2": " cents ",
    }
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))
_BRACKETS = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_LEFT_OUT = re.compile(r"""['"`.?!,:;]|-{1,4}|\.{3,}""")


def tokenize(caption: str) -> list[str]:
    """The lower-case tokens of a caption, as coco-caption's metrics count them.

    "A man's dog isn't here (yet)." is a man 's dog is n't here -lrb- yet -rrb-.
    """
    plain = _ENTITY.sub(lambda found: _ENTITIES[found[0]], caption).translate(_PLAIN)
    plain = "".join(character for character in plain if character <= "\uffff")  # as in Java
    shown = (_shown(token) for token in _split(plain) if not _LEFT_OUT.fullmatch(token))
    return [word for token in shown for word in token.split()]  # a tag may hold spaces


def _split(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found = [match for rule in _RULES if (match := rule.match(text, place))]
        longest = max(found, key=re.Match.end)  # of equals the first
        yield from (group for group in longest.groups() or (longest[0],) if group)
        place = longest.end()


def _shown(token: str) -> str:
    lowered = token.lower()
    return _BRACKETS.get(token) or lowered.replace("(", "-lrb-").replace(")", "-rrb-")
