"""The set of definitions: what becomes a row, what is left out, and that no text stands in both parts."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.glosses import CAP, Gloss, choose, definition, in_test, read_glosses, template

NOUNS = """\
  1 This software is provided under the following license.
  2
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is known to exist
02084071 05 n 02 domestic_dog 0 dog 0 001 @ 02083346 n 0000 | a member of the genus Canis; "the dog barked all night"
15135996 28 n 01 night 0 000 | the time after sunset
"""
VERBS = '01835496 38 v 01 travel 0 000 01 + 01 00 | change location; move or go by land; "How fast?"\n'


@pytest.fixture
def wordnet(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "data.verb").write_text(VERBS)
    return tmp_path


def gloss(text: str, *, id: str = "00000001-n", label: str = "noun.person") -> Gloss:
    return Gloss(id=id, word="word", text=text, label=label)


def test_rows_of_a_file_without_the_licence_and_the_files_that_are_no_class(wordnet):
    dog, night = read_glosses(wordnet / "data.noun", "noun")
    text = "a member of the genus Canis"
    assert dog == Gloss(id="02084071-n", word="domestic dog", text=text, label="noun.animal")
    assert (night.id, night.label) == ("15135996-n", "noun.time")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('a small room; "the cell"; "two cells"\n', "a small room"),
        ('speak out, "say it!"\n', "speak out"),
        ("walk slowly; as if tired  \n", "walk slowly; as if tired"),
        ('the phrase "make strides"; "big strides"\n', 'the phrase "make strides"'),
    ],
)
def test_a_definition_ends_where_the_examples_begin(raw, expected):
    assert definition(raw) == expected


def test_a_template_has_no_names_numbers_or_punctuation():
    assert template("United States painter (born in 1930)") == "united painter born in"
    assert template("The 20th letter, of the Greek alphabet") == "the letter of the alphabet"


def test_one_row_of_a_template_and_none_where_two_classes_share_it():
    first, second = gloss("painter born in France", id="2"), gloss("painter born in Spain", id="1")
    shared = [gloss("the act of going", label="noun.act"), gloss("The act, of going!", label="noun.event")]
    assert choose([second, *shared, first, gloss("small mouse")]) == [first]
    assert choose([first, *shared, second]) == [first]


def test_a_class_is_capped_at_the_same_rows_whatever_the_order():
    words = ["".join(chr(97 + int(digit)) for digit in str(number)) for number in range(CAP + 50)]
    many = [gloss(f"a kind of {word}") for word in words]
    chosen = choose(many)
    assert len(chosen) == CAP
    assert choose(reversed(many)) == chosen
    assert 0.09 < sum(map(in_test, chosen)) / CAP < 0.16


def test_texts_of_one_template_are_in_one_part():
    assert len({in_test(gloss(f"painter born in {year}")) for year in range(1900, 1950)}) == 1


def test_the_command_writes_the_same_bytes_twice(wordnet, tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "glosses.py"
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        subprocess.run([sys.executable, str(script), str(wordnet), str(out)], check=True, capture_output=True)
    written, again = ({path.name: path.read_bytes() for path in out.iterdir()} for out in outs)
    assert written == again
    lines = b"".join(gzip.decompress(written[f"glosses-{part}.jsonl.gz"]) for part in ("train", "test")).splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"02084071-n", "15135996-n", "01835496-v"}
    assert json.loads(written["glosses-labels.json"]) == ["noun.animal", "noun.time", "verb.motion"]
    assert b"\nThis software is provided under the following license.\n" in written["NOTICE"]
