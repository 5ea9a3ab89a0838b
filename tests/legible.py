"""Can every word of a picture be read? For the tests of figures."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from train import figures


def check(draw: Callable[[Any], Figure], numbers: Mapping[str, Any]) -> None:
    """Every word is inside the picture, of at least 8 points, and clear of all others."""
    with style.context(["default", figures.STYLE]):
        figure = draw(numbers)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        words = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
        boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in words]
    assert min(text.get_fontsize() for text in words) >= 8
    for text, box in boxes:
        inside = (
            box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        )
        assert inside, f"{text!r} is cut off"
    # The box of a slanted text covers much that the text does not.
    straight = [
        each for each, t in zip(boxes, words, strict=True) if round(t.get_rotation(), 1) % 90 == 0
    ]
    for (one, a), (other, b) in itertools.combinations(straight, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), f"{one!r} lies over {other!r}"
