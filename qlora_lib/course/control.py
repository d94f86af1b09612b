"""A small control to play with a parameter, and a static picture where no kernel is alive.

How it works: `draw` makes a picture from one value of each parameter. In a live notebook an ipywidgets
box redraws it; the same output carries the picture of the first values, which a page, a preview or a
front end without widgets shows instead.
"""

from collections.abc import Callable, Sequence

from qlora_lib.errors import UsageError
from qlora_lib.notebooks.execution import WIDGET
from qlora_lib.notebooks.shown import Picture


class Control:
    """What `control` returns: a notebook displays it."""

    def __init__(self, draw: Callable[..., Picture], choices: dict[str, list]):
        self.draw, self.choices = draw, choices
        self.first = {name: values[0] for name, values in choices.items()}

    def widget(self, png: bytes | None = None):
        """The ipywidgets box: one row of buttons or one slider a parameter, the picture below.

        The picture is an Image, not an Output that captures what is displayed: capturing needs a front end
        that answers, and a headless run may wait for one.
        """
        import ipywidgets

        rows = {name: _row(ipywidgets, name, values) for name, values in self.choices.items()}
        layout = ipywidgets.Layout(max_width="100%")
        image = ipywidgets.Image(value=png or self._png(self.first), format="png", layout=layout)

        def redraw(_) -> None:
            image.value = self._png({name: row.value for name, row in rows.items()})

        for row in rows.values():
            row.observe(redraw, "value")
        return ipywidgets.VBox([*rows.values(), image])

    def _png(self, values: dict) -> bytes:
        return self.draw(**values)._repr_mimebundle_()[0]["image/png"]

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle, metadata = self.draw(**self.first)._repr_mimebundle_()
        chosen = ", ".join(f"{name} = {value}" for name, value in self.first.items())
        bundle["text/plain"] = f"{bundle['text/plain']} (Shown for {chosen}.)"
        box = self.widget(bundle["image/png"])._repr_mimebundle_()
        live = box[0] if isinstance(box, tuple) else box
        return bundle | {WIDGET: live[WIDGET]}, metadata

    def __repr__(self) -> str:
        return f"control({', '.join(self.choices)})"


def control(draw: Callable[..., Picture], **choices: Sequence) -> Control:
    """Play with the parameters of a picture.

    Args:
        draw: of one value for each parameter, to a `Picture`.
        choices: the values of each parameter; the first is what the static picture shows.

    Raises UsageError for a parameter without values.
    """
    for name, values in choices.items():
        if not len(values):
            raise UsageError(f"'{name}' has no values to choose from", "Give at least one")
    return Control(draw, {name: list(values) for name, values in choices.items()})


def _row(ipywidgets, name: str, values: list):
    label = name.replace("_", " ")
    if all(isinstance(v, str) for v in values) or len(values) <= 3:
        return ipywidgets.ToggleButtons(options=values, description=label)
    return ipywidgets.SelectionSlider(
        options=sorted(values), value=values[0], description=label, continuous_update=False
    )

