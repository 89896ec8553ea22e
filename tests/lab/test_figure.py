"""The style of figures: elements, colours, and SVG files without external references."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from sigmoid_attention.lab.figure import COLOURS, PAPER, loglog, panels, styled, svg
from sigmoid_attention.lab.theme import PALETTE
from sigmoid_attention.mixtures.gates import GATES

SIZES = np.array([10.0, 100.0, 1000.0])


def panel():
    _, (axis,) = panels(1)
    return axis


def values(replicates=9):
    spread = np.linspace(0.5, 1.5, replicates)
    return SIZES[:, None] ** -0.5 * spread


def test_medians_with_bars_from_quartile_to_quartile():
    axis = panel()
    loglog(axis, SIZES, values(), "sigmoid")
    (bars,) = axis.containers
    points, _, (lines,) = bars
    np.testing.assert_allclose(points.get_ydata(), SIZES**-0.5)
    ends = np.array([segment[:, 1] for segment in lines.get_segments()])
    np.testing.assert_allclose(ends, np.outer(SIZES**-0.5, (0.75, 1.25)))
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["sigmoid"]


def test_the_line_has_its_slope_and_goes_through_the_middle():
    axis = panel()
    loglog(axis, SIZES, values(), None, slope=-0.25, colour="softmax", dashed=True)
    line = axis.lines[-1]
    heights = np.log(line.get_ydata())
    np.testing.assert_allclose(np.diff(heights) / np.diff(np.log(SIZES)), -0.25)
    assert heights.mean() == pytest.approx(-0.5 * np.log(SIZES).mean())
    assert line.get_color() == COLOURS["softmax"] and line.get_linestyle() == "--"
    assert axis.get_legend() is None


def test_fits_that_did_not_converge_are_no_points():
    axis = panel()
    measured = values()
    measured[1] = np.nan
    measured[2, 5:] = np.nan
    loglog(axis, SIZES, measured, "sigmoid")
    np.testing.assert_allclose(axis.containers[0][0].get_xdata(), SIZES[[0, 2]])
    loglog(axis, SIZES, np.full_like(measured, np.nan), "softmax", slope=1.0)
    assert len(axis.containers) == 1


def test_an_axis_of_less_than_a_decade_has_plain_labels():
    axis = panel()
    loglog(axis, SIZES, np.array([[0.5], [0.9], [1.5]]), "sigmoid")
    drawn = svg(axis.figure).decode()
    assert ">0.6</text>" in drawn and "e-01" not in drawn


def test_every_gate_has_a_colour_of_its_own_and_others_take_turns():
    assert COLOURS.keys() == GATES.keys()
    assert len(set(COLOURS.values())) == len(COLOURS)
    axis = panel()
    for label in ("one", "other"):
        loglog(axis, SIZES, values(), label, slope=-0.5)
    first, second = (container[0].get_color() for container in axis.containers)
    assert first != second
    loglog(axis, SIZES, values(), "third", colour="#123456")
    assert axis.containers[2][0].get_color() == "#123456"


def test_svg_is_text_on_a_ground_and_the_same_every_time():
    def drawn():
        figure, axes = panels(2)
        for axis in axes:
            axis.set_title("a title to be found")
            loglog(axis, SIZES, values(), "sigmoid", slope=-0.5)
        return svg(figure)

    first = drawn()
    assert first == drawn()
    assert b">a title to be found</text>" in first and b"fill-paper" in first
    assert b"<dc:date>" not in first
    # The label 10^2 of a logarithmic axis has a part for each character.
    texts = ["".join(text.itertext()) for text in ET.fromstring(first).findall(".//{*}text")]
    assert "102" in ["".join(text.split()) for text in texts]


def test_svg_has_its_colours_from_the_style_sheet_alone():
    with styled():
        figure, (axis,) = panels(1)
        loglog(axis, SIZES, values(), "sigmoid", slope=-0.5, colour="sigmoid")
    root = ET.fromstring(svg(figure))
    style, *drawn = root
    assert all("#" not in element.get("style", "") for part in drawn for element in part.iter())
    light, dark = style.text.split("prefers-color-scheme: dark")
    for name in ("paper", "ink", "azure"):
        assert f"--{name}: {PALETTE[name].light};" in light
        assert f"--{name}: {PALETTE[name].dark};" in dark
    # Only of the colours in the figure.
    assert "--teal" not in style.text


def test_every_colour_of_the_palette_has_one_name_and_two_shades():
    lights = [colour.light for colour in PALETTE.values()]
    assert len(set(lights)) == len(lights)
    assert set(COLOURS.values()) <= set(lights)
    assert all(re.fullmatch("#[0-9a-f]{6}", shade) for pair in PALETTE.values() for shade in pair)


def test_the_style_ends_where_it_ends():
    before = dict(matplotlib.rcParams)
    with styled():
        assert matplotlib.rcParams["svg.fonttype"] == "none"
        panels(3)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (5, (2, 3))])
def test_panels_fill_rows(count, shape):
    figure, axes = panels(count)
    assert len(axes) == count
    grid = axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    assert to_hex(figure.get_facecolor()) == PAPER
