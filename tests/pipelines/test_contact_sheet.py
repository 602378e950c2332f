"""Pictures in a grid, and words that fit under them."""

import numpy as np
import pytest

from pipelines.contact_sheet import Cell, Line, Picture, Section, draw_sheet
from pipelines.lettering import drawable, fitted, length, wrapped
from pipelines.visible import shortened, visible


def section(cells, *, heading="key", name="name"):
    grey = np.full((16, 16, 3), 90, np.uint8)
    cell = Cell("view 1", (Picture("teacher", grey), Picture("student", grey)), (Line(name, "12.5%", 0.5), Line(name)))
    return Section(heading, ("row 0",), (cell,) * cells)


@pytest.mark.parametrize("cells", [1, 2, 7, 17])
def test_nothing_stands_in_the_margins_and_no_word_is_cut(cells):
    for name in ("n" * 5, "W" * 300, "é東\x1b[31m" * 40):
        sheet = np.asarray(draw_sheet([name * 9], [section(cells, heading=name * 3, name=name)], side=16, other=8))
        assert (sheet[:20] == 255).all() and (sheet[-20:] == 255).all()
        assert (sheet[:, :22] == 255).all() and (sheet[:, -22:] == 255).all()
        assert (sheet[40:-40] < 255).any()
        for size, width in ((13, 168), (18, 500)):
            assert length(fitted(name, width, size), size) <= width
            assert all(length(line, size) <= width for line in wrapped(name * 3, width, size))


def test_words_are_kept_whole_where_they_fit():
    assert fitted("short", 168, 13) == "short"
    assert wrapped("one two three four", 80, 13)[0] in ("one two", "one two three")
    long = fitted("n01440764/" + "0" * 80 + "_10026.JPEG", 168, 13)
    assert long.startswith("n014") and long.endswith("6.JPEG") and "…" in long


def test_large_pictures_are_drawn_as_large_as_the_students():
    def width(side, other):
        picture = Picture("", np.zeros((side, side, 3), np.uint8)), Picture("", np.zeros((other, other, 3), np.uint8))
        return np.argwhere(
            (np.asarray(draw_sheet([], [Section("", (), (Cell("", picture),))], side=side, other=other)) == 0).all(2)
        )[:, 1]

    for side, other, expected in ((16, 8, 224), (384, 192, 192), (384, 64, 256), (1024, 512, 256), (224, 112, 224)):
        across = width(side, other)
        assert across.max() - across.min() + 1 == expected, (side, other)


def test_what_terminal_and_font_do_not_have():
    assert visible("a\x1b[31m\x9b\u202e\n\u2028é東") == "a\\u001b[31m\\u009b\\u202e\\n\\u2028é東"
    assert visible("a\tb\n", kept="\n\t") == "a\tb\n"
    assert visible("\U000e0001") == "\\udb40\\udc01"
    assert drawable("été 東") == "ete \\u6771"
    assert shortened("abcdefghij", 5) == "ab…ij" and shortened("abc", 3) == "abc"
