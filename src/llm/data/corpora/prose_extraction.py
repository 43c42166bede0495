"""Extraction of prose from technical documentation."""

import re
from collections.abc import Iterable, Iterator

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

MARKUP = [
    (re.compile(r":[a-zA-Z:+-]+:`[~!]?([^`<]+?)(?: *<[^`>]*>)?`"), r'"\1"'),  # :class:`name`
    (re.compile(r"`([^`<]+?) *<[^`>]*>`_+"), r"\1"),  # `words <address>`_
    (re.compile(r"``([^`]+)``|`([^`']+)[`']_*"), r'"\1\2"'),  # ``code`` and `name'
    (re.compile(r"(?<![\w*])\*{1,2}(\w[^*]*?)\*{1,2}(?![\w*])"), r"\1"),  # *words*, **words**
    (re.compile(r" ?\[(?:\d+|#\w*)\]_?"), ""),  # a footnote
    (re.compile(r"::(?= |$)"), ":"),
    (re.compile(r"\s+"), " "),
]
BULLET = re.compile(r"^\s*(?:[*+-]|\(?\d{1,2}[.)]|[•–])\s+(?=\S)")
SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<! cf)(?<!E\.g)[.!?][\")'”’]*(?=\s|$)")
SENTENCE_START = re.compile(r"[\"'(“‘]?[A-Z\"]")
# Marks of code, grammar, tables, signatures and lists of fields.
NOT_PROSE = re.compile(
    r">>>|::|==|->|\.\.\. |:=|[{}|<>\\$@~^]|[#=_+*/-]{3,}|\w=|=\w|\w\(\w[^)]*[,=]|https?:"
    r"|^(?:Args|Arguments|Returns?|Raises|Example|Examples|Usage|Note|Todo|TODO|XXX|Changed|New in)\b:?$"
    r"|^(?:Copyright|Licensed|Permission)\b|^:?\w+( \w+)?: |\S {3,}\S"
)
WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
# Function words of English sentences; a list of names has none.
GLUE = frozenset(
    "a an and are as at be been but by can for from has have if in into is it its may must not of on or so than that "
    "the then there these this those to was when which will with you".split()
)
LEAST_WORDS = 8
LEAST_PLAIN = 0.8  # share of tokens that are plain words
LEAST_GLUE = 0.2  # share of words that are function words


def extract_paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of prose, each on one line and without markup.

    Code, grammar, tables, signatures, headings, lists of names and sentence fragments are left out. So is an
    incomplete last sentence, which usually introduces code.
    """
    for block in _blocks(text.expandtabs().splitlines()):
        paragraph = remove_markup(" ".join(line.strip() for line in block))
        ends = list(SENTENCE_END.finditer(paragraph))
        paragraph = paragraph[: ends[-1].end()] if ends else ""
        if is_prose(paragraph):
            yield paragraph


def remove_markup(text: str) -> str:
    """Remove reStructuredText's markup; put names and code in double quotes."""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def is_prose(paragraph: str) -> bool:
    """Return whether a paragraph on one line consists of English sentences."""
    if not SENTENCE_START.match(paragraph) or NOT_PROSE.search(paragraph):
        return False
    tokens = paragraph.split()
    words = [match.lower() for match in WORD.findall(paragraph)]
    plain = sum(WORD.fullmatch(token.strip("\"'().,;:!?“”‘’")) is not None for token in tokens)
    glue = sum(word in GLUE for word in words)
    return (
        len(words) >= LEAST_WORDS
        and plain >= LEAST_PLAIN * len(tokens)
        and glue >= LEAST_GLUE * len(words)
    )


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield paragraphs and list items as lists of lines; skip those with uneven indentation, which are not prose."""
    block: list[str] = []
    for line in [*lines, ""]:
        bullet = BULLET.match(line)
        if block and (bullet or not line.strip()):
            if len({len(each) - len(each.lstrip()) for each in block[1:]}) <= 1:
                yield block
            block = []
        if line.strip():
            block.append(" " * bullet.end() + line[bullet.end() :] if bullet else line)
