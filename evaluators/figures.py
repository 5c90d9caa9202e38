"""Pictures for the report, in colours that colour-blind readers can tell apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

FORGOTTEN = "#D55E00"
"""Colour of what is forgotten, in every picture (vermilion of Okabe and Ito's palette)."""

SUBJECTS = {
    "target": "#8A8F98",
    "unlearned": "#0072B2",
    "retrained": "#009E73",
    "teacher": "#E69F00",
    "clean": "#56B4E9",
    "corrupted": "#CC79A7",
}
SPLITS = {"retain": "#8A8F98", "holdout": "#0072B2", "forget": FORGOTTEN}
"""Colours of the splits whose likelihoods are drawn, the last in front."""
OTHER = "#E69F00"
DPI = 200
CELL = 56
LARGE_CELL = 112
FRAME = 4
"""Thickness in pixels of the frame around a marked image."""
LETTER = 16
"""Pixels that a letter of a heading takes at most, on average."""
FEW = 20
"""With fewer items than this a distribution is drawn as ticks, not as a histogram."""

Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Panel:
    """A grid of images under a title.

    Args:
        title: heading.
        images: (n, C, H, W) uint8.
        levels: number of grey levels.
        marked: (n,) bool, the images that get a frame.
        cell: side in pixels to which small images are enlarged, by an integer factor.
    """

    title: str
    images: Tensor
    levels: int
    marked: Tensor | None = None
    cell: int = CELL


def panels(content: Sequence[Panel], columns: int, stacked: bool = False) -> bytes:
    """Return a PNG of grids of images, side by side or stacked, each pixel enlarged to a square."""
    grids = [mosaic(panel, columns) for panel in content]
    gap, heading = 28, 44
    heights = [len(grid) for grid in grids]
    widths = [max(grid.shape[1], LETTER * len(panel.title)) for grid, panel in zip(grids, content, strict=True)]
    height = sum(heights) + heading * len(grids) if stacked else max(heights) + heading
    width = max(widths) if stacked else sum(widths) + gap * (len(grids) - 1)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    left = top = 0  # in pixels from the upper left; matplotlib measures shares of the figure from the lower left
    for panel, grid, room in zip(content, grids, widths, strict=True):
        down = top + heading
        place = (left / width, 1 - (down + len(grid)) / height, grid.shape[1] / width, len(grid) / height)
        axes = figure.add_axes(place)
        axes.imshow(grid, interpolation="none", aspect="auto")
        axes.set_axis_off()
        figure.text((left + FRAME) / width, 1 - (top + 0.6 * heading) / height, panel.title, fontsize=9, va="center")
        left, top = (left, down + len(grid)) if stacked else (left + room + gap, top)
    return encode(figure)


def mosaic(panel: Panel, columns: int) -> Array:
    """Return the images of a panel as one grid (height, width, 3), row by row, on white."""
    n, _, height, width = panel.images.shape
    factor = max(1, panel.cell // max(height, width))
    columns = min(columns, n)
    rows, pad = -(-n // columns), FRAME + 1
    cells: Array = np.full((rows * columns, factor * height + 2 * pad, factor * width + 2 * pad, 3), 255, np.uint8)
    if panel.marked is not None:  # the frame is what the image leaves of the coloured cell
        cells[:n][panel.marked.numpy(), 1:-1, 1:-1] = list(bytes.fromhex(FORGOTTEN[1:]))
    cells[:n, pad:-pad, pad:-pad] = _rgb(panel.images, panel.levels).repeat(factor, axis=1).repeat(factor, axis=2)
    by_row = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return by_row.reshape(rows * cells.shape[1], columns * cells.shape[2], 3)


def _rgb(images: Tensor, levels: int) -> Array:
    """Map images (n, C, H, W) of grey levels to (n, H, W, 3) in 0 ... 255; other than 3 channels show the first."""
    bright = (images.float() * (255 / (levels - 1))).round().clamp(0, 255).to(torch.uint8)
    colour = bright if images.shape[1] == 3 else bright[:, :1].expand(-1, 3, -1, -1)
    return colour.permute(0, 2, 3, 1).numpy()


def likelihood_histograms(found: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """Return a PNG with one row per subject: the distribution of bits/dim, (n,) values, in each split."""
    values = torch.cat([bits for splits in found.values() for bits in splits.values()])
    finite = values[values.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)
    usual = torch.cat(list(next(iter(found.values())).values()))  # the target's, where it is measured
    usual = usual[usual.isfinite()]
    if len(usual) > 1:  # a few items far out must not squeeze the rest
        high = min(high, (usual.median() + 20 * usual.std()).item())
    high = high if high > low else low + 1.0
    bins = np.linspace(low, high, 61).tolist()
    figure = Figure(figsize=(8.0, 1.5 * len(found) + 0.5), dpi=DPI, facecolor="white", layout="constrained")
    rows = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (subject, splits) in zip(rows, found.items(), strict=True):
        axes.set_title(subject, loc="left", fontsize=9)
        axes.set_yticks([])
        axes.spines[["left", "right", "top"]].set_visible(False)
        for split, colour in SPLITS.items():
            bits = splits.get(split, torch.empty(0))
            shown = bits[~bits.isnan()].clamp(low, high).numpy()
            if 0 < len(shown) < FEW:
                marks, where = np.full(len(shown), 0.08), axes.get_xaxis_transform()
                axes.plot(shown, marks, "v", color=colour, mec="white", ms=9, transform=where, label=split)
            elif len(shown):
                fill = split == "retain"
                axes.hist(
                    shown,
                    bins=bins,
                    density=True,
                    histtype="stepfilled" if fill else "step",
                    color=colour,
                    alpha=0.45 if fill else 1.0,
                    linewidth=1.6,
                    linestyle="--" if split == "holdout" else "-",
                    label=split,
                )
        if len(axes.patches):  # the outline of empty bins would hide the axis
            axes.set_ylim(bottom=0.012 * axes.get_ylim()[1])
    rows[0].legend(frameon=False, fontsize=8, loc="upper right")
    beyond = int((values > high).sum())
    note = f"; {beyond} values beyond the right edge are drawn on it" if beyond else ""
    rows[-1].set_xlabel(f"bits per dimension (right: less likely{note})", fontsize=8)
    rows[-1].tick_params(labelsize=8)
    return encode(figure)


def share_bars(
    shares: Mapping[str, Sequence[tuple[float, tuple[float, float]]]],
    categories: Sequence[str],
    forgotten: Sequence[str],
) -> bytes:
    """Return a PNG of bars: the share of each category in each subject's samples, with its interval."""
    figure = Figure(figsize=(8.0, 2.8), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(shares)
    places = np.arange(len(categories))
    for index, (subject, rows) in enumerate(shares.items()):
        height = np.array([100 * value for value, _ in rows])
        ends = np.array([[100 * low, 100 * high] for _, (low, high) in rows])
        axes.bar(
            places + width * (index - (len(shares) - 1) / 2),
            height,
            width,
            yerr=np.abs(ends.T - height),
            color=SUBJECTS.get(subject, OTHER),
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
            label=subject,
        )
    axes.set_xticks(places, labels=list(categories), fontsize=9)
    for name, label, place in zip(categories, axes.get_xticklabels(), places, strict=True):
        if name in forgotten:
            label.set(color=FORGOTTEN, fontweight="bold")
            axes.axvspan(place - 0.5, place + 0.5, color=FORGOTTEN, alpha=0.12, linewidth=0, zorder=0)
    axes.set_xlim(-0.5, len(categories) - 0.5)
    axes.set_ylabel("% of samples", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=len(shares), loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return encode(figure)


def encode(figure: Figure) -> bytes:
    """Return a figure as PNG, the same bytes for the same figure."""
    FigureCanvasAgg(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
