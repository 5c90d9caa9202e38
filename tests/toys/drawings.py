"""A few emoji as SVG files of one's own: plain shapes, called by the code points of hearts, circles, squares, ..."""

from __future__ import annotations

from pathlib import Path

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
HEARTS = ("2764", "1F9E1", "1F49B", "1F49A", "1F499", "1F49C", "1F90E", "1F5A4", "1F90D")
CIRCLES = ("1F534", "1F7E0", "1F7E1", "1F7E2", "1F535", "1F7E3", "1F7E4", "26AB", "26AA")
SQUARES = ("1F7E5", "1F7E7", "1F7E8", "1F7E9", "1F7E6", "1F7EA", "1F7EB", "2B1B", "2B1C")
OTHERS = {"1F495": "pink", "1F34E": "red", "1F1EB-1F1F7": "blue", "0023-FE0F-20E3": "grey"}
"""Two hearts, a red apple, the flag of France, and a key that some lists call by one code point more."""

SHAPES = {
    HEARTS: '<path d="M36 60 L10 30 A12 12 0 0 1 36 24 A12 12 0 0 1 62 30 Z" fill="{}"/>',
    CIRCLES: '<circle cx="36" cy="36" r="28" fill="{}"/>',
    SQUARES: '<rect x="8" y="8" width="56" height="56" fill="{}"/>',
}


def write_drawings(folder: Path, more: dict[str, str] | None = None) -> Path:
    """Write the files, ``more`` of them by code point and colour, one that is no emoji, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        code: shape.format(ink) for codes, shape in SHAPES.items() for code, ink in zip(codes, COLOURS, strict=True)
    }
    others = OTHERS | (more or {})
    drawn |= {code: f'<path d="M8 64 L64 64 L36 8 Z" fill="{ink}"/>' for code, ink in others.items()}
    for code, shape in {**drawn, "notes": ""}.items():
        text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{shape}</svg>'
        (folder / f"{code}.svg").write_text(text)
    return folder
