"""A contact sheet: pictures in a grid with words under them, on white."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from featurecache.errors import UsageError
from pipelines.lettering import fitted, font, length, wrapped

__all__ = ["Cell", "Line", "Picture", "Section", "checked_path", "draw_sheet", "save_sheet"]

_SIDE = 224
"""Pixels a side at which pictures are drawn, about: whole multiples of small ones."""
_LARGEST = 256
_NARROWEST = 168
"""A cell that is narrower has no room for words."""
_MARGIN, _GAP, _BAND_GAP, _SECTION_GAP = 24, 18, 26, 34
_LINE, _TITLE_LINE, _LABEL_LINE = 19, 24, 17
_COLUMNS = 6
_PNG = b"\x89PNG\r\n\x1a\n"
_INK, _GREY, _FRAME, _BAR, _RULE = (24, 24, 27), (107, 110, 118), (212, 214, 219), (214, 230, 250), (226, 228, 232)


@dataclass(frozen=True, slots=True)
class Picture:
    """One image and what it is."""

    label: str
    pixels: np.ndarray
    """uint8 (height, width, 3)."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of words under pictures: a name, and a number at the right."""

    name: str
    value: str = ""
    share: float = 0.0
    """How much of the line a bar behind it fills, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Pictures above each other, with a title over them and lines under them."""

    title: str
    pictures: tuple[Picture, ...]
    lines: tuple[Line, ...] = ()
    tall: bool = False
    """Whether its one picture may take the room of two."""


@dataclass(frozen=True, slots=True)
class Section:
    """All there is of one sample."""

    heading: str
    notes: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where things stand, in pixels."""

    side: int
    lower: int
    """Height of the lower pictures."""
    cell: int
    """Width of a cell."""
    columns: int

    @property
    def width(self) -> int:
        return 2 * _MARGIN + self.columns * (self.cell + _GAP) - _GAP

    @property
    def inner(self) -> int:
        return self.width - 2 * _MARGIN


def draw_sheet(notes: Sequence[str], sections: Sequence[Section], *, side: int, other: int) -> Image.Image:
    """An RGB image of as many rows and columns as it takes, for pictures of `side` pixels and below them of `other`.

    Small pictures are enlarged to whole multiples, so that every pixel is seen; only those of more than 256 pixels are
    made smaller, and say so.
    """
    drawn = _drawn_side(side, other)
    columns = max(_columns(len(section.cells)) for section in sections)
    lower = other * (drawn // other) if other <= drawn else drawn
    grid = _Grid(drawn, lower, max(drawn, _NARROWEST), columns)
    top = [Line(text) for note in notes for text in wrapped(note, grid.inner, 13)]
    bands = [_bands(section, grid) for section in sections]
    heights = [
        _head_height(section, grid) + sum(_band_height(band, grid) + _BAND_GAP for band in each)
        for section, each in zip(sections, bands, strict=True)
    ]
    height = 2 * _MARGIN + len(top) * _LINE + sum(heights) + _SECTION_GAP * len(sections) - _BAND_GAP
    sheet = Image.new("RGB", (grid.width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    for line in top:
        _write(draw, (_MARGIN, y), line.name, 13, _GREY)
        y += _LINE
    for section, each in zip(sections, bands, strict=True):
        y = _draw_section(sheet, draw, section, each, grid, y + _SECTION_GAP)
    return sheet


def checked_path(path: Path) -> Path:
    """Where the sheet goes. Raises UsageError if something stands there that is no PNG."""
    path = path.absolute() if not path.is_symlink() else path.resolve()
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out {path.name} is no name of a PNG", hint="write --out sheet.png")
    if path.is_dir() or (path.exists() and not _is_png(path)):
        raise UsageError(f"what stands at {path} is no PNG, so it is left as it is", hint="choose another --out")
    return path


def _is_png(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_PNG)) == _PNG


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """A PNG, written beside and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem[:100]}.{os.getpid()}.partial")
    try:
        sheet.save(partial, format="PNG", optimize=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _drawn_side(side: int, other: int) -> int:
    """How large pictures of `side` pixels are drawn; large ones so that those of `other` pixels fill as much."""
    if side <= _LARGEST:
        return min(side * max(round(_SIDE / side), 1), _LARGEST)
    fitting = other * (_LARGEST // other) if other <= _LARGEST else _LARGEST
    return fitting if fitting >= _NARROWEST else _LARGEST


def _columns(cells: int) -> int:
    rows = -(-cells // _COLUMNS)
    return -(-cells // rows)


def _bands(section: Section, grid: _Grid) -> list[Sequence[Cell]]:
    return [section.cells[at : at + grid.columns] for at in range(0, len(section.cells), grid.columns)]


def _head_height(section: Section, grid: _Grid) -> int:
    lines = [text for note in section.notes for text in wrapped(note, grid.inner, 13)]
    return len(wrapped(section.heading, grid.inner, 18)) * _TITLE_LINE + len(lines) * _LINE + 12


def _band_height(band: Sequence[Cell], grid: _Grid) -> int:
    return _TITLE_LINE + _pictures_height(grid) + max(len(cell.lines) for cell in band) * _LINE


def _pictures_height(grid: _Grid) -> int:
    return 2 * _LABEL_LINE + grid.side + grid.lower + 14


def _draw_section(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    section: Section,
    bands: Sequence[Sequence[Cell]],
    grid: _Grid,
    y: int,
) -> int:
    """Returns where it ends."""
    draw.line((_MARGIN, y - 14, grid.width - _MARGIN, y - 14), fill=_RULE)
    for text in wrapped(section.heading, grid.inner, 18):
        _write(draw, (_MARGIN, y), text, 18, _INK)
        y += _TITLE_LINE
    for text in (text for note in section.notes for text in wrapped(note, grid.inner, 13)):
        _write(draw, (_MARGIN, y), text, 13, _GREY)
        y += _LINE
    y += 12
    for band in bands:
        for column, cell in enumerate(band):
            _draw_cell(sheet, draw, cell, grid, _MARGIN + column * (grid.cell + _GAP), y)
        y += _band_height(band, grid) + _BAND_GAP
    return y - _BAND_GAP


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, grid: _Grid, x: int, y: int) -> None:
    _write(draw, (x, y), fitted(cell.title, grid.cell, 15), 15, _INK)
    y += _TITLE_LINE
    for place, picture in enumerate(cell.pictures):
        at = y + place * (_LABEL_LINE + grid.side + 6)
        room = grid.side + grid.lower + _LABEL_LINE + 6 if cell.tall else grid.side
        image = _scaled(picture.pixels, grid.side, room)
        smaller = f", drawn at {image.width}" if image.width < picture.pixels.shape[1] else ""
        _write(draw, (x, at), fitted(picture.label + smaller, grid.cell, 12), 12, _GREY)
        sheet.paste(image, (x, at + _LABEL_LINE))
        draw.rectangle((x - 1, at + _LABEL_LINE - 1, x + image.width, at + _LABEL_LINE + image.height), outline=_FRAME)
    y += _pictures_height(grid)
    for line in cell.lines:
        _draw_line(draw, line, grid.cell, x, y)
        y += _LINE


def _draw_line(draw: ImageDraw.ImageDraw, line: Line, width: int, x: int, y: int) -> None:
    if line.share > 0:
        draw.rectangle((x, y + 1, x + max(round(width * min(line.share, 1)), 1) - 1, y + _LINE - 3), fill=_BAR)
    room = length(line.value, 13) if line.value else 0
    if line.value:
        _write(draw, (x + width - room, y), line.value, 13, _INK)
    inset = 3 if line.value else 0
    _write(draw, (x + inset, y), fitted(line.name, width - room - 4 * inset, 13), 13, _INK if line.value else _GREY)


def _scaled(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    """A picture as large as there is room for: enlarged by a whole number without smoothing, or made smaller."""
    image = Image.fromarray(pixels)
    factor = min(width / image.width, height / image.height)
    if factor >= 1:
        return image.resize((image.width * int(factor), image.height * int(factor)), Image.Resampling.NEAREST)
    size = max(round(image.width * factor), 1), max(round(image.height * factor), 1)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]) -> None:
    draw.text(at, text, fill=colour, font=font(size))
