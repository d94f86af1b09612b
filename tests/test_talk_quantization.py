"""Talk figures of notebooks 01 and 02: drawn from plain arrays, and they show what they are given."""

import numpy as np
import pytest

from qlora_lib import style
from qlora_lib.figures import talk

LEVELS, SHARE = np.linspace(-1, 1, 16), np.full(16, 1 / 16)
SMALL = {"codes": 10.0, "scales": 1.0, "embedding": 9.0, "head": 0.0, "norms": 0.1}


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def test_codebooks_has_one_row_a_data_type_on_one_axis():
    figure = talk.draw_codebooks(np.linspace(-1, 1, 500), {"NF4": (LEVELS, SHARE), "INT4": (LEVELS * 8 / 7, SHARE * 2)})
    assert [axes.get_title(loc="left") for axes in figure.axes][1:] == ["NF4", "INT4"]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert figure.axes[1].get_ylim() == figure.axes[2].get_ylim()  # bars of one scale
    assert style.render(figure, "svg") == style.render(figure, "svg")


@pytest.mark.parametrize("panels", [1, 3, 4])
def test_error_maps_share_one_colour_scale_and_say_its_unit(panels):
    errors = {f"map {i}": np.full((20, 64), 0.1 * (i + 1)) for i in range(panels)}
    figure = talk.draw_error_map(errors, "RMS of the weights")
    images = [image for axes in figure.axes for image in axes.images]
    assert len(images) == panels and len({image.get_clim() for image in images}) == 1
    assert "error, RMS of the weights" in texts(figure)


def test_an_error_map_without_errors_is_drawn():
    talk.draw_error_map({"none": np.zeros((4, 64))}, "RMS of the weights")


def test_resident_anatomy_names_what_was_only_predicted_and_the_factor():
    figure = talk.draw_resident_anatomy({"a": SMALL, "b": SMALL}, {"a": 40.2, "b": 80.4}, {"a"})
    shown = texts(figure)
    assert "2.00 times smaller" in shown and "4.00 times smaller" in shown
    assert "b\n(predicted)" in shown and "a\n(predicted)" not in shown
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert sum(widths[:5]) == pytest.approx(50.0)
