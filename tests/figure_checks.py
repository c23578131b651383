"""The check that drawings share. It has its own file, so that ranks which import helpers do not load matplotlib."""

from matplotlib.backends.backend_agg import FigureCanvasAgg


def assert_text_is_readable(figure):
    """Every text that ``figure`` shows is large enough for a slide, and no edge of the figure cuts it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for axis in figure.axes for text in (*axis.texts, axis.xaxis.label, axis.yaxis.label, axis.title)]
    shown = [text for text in texts if text.get_text() and text.get_visible()]
    assert shown
    for text in shown:
        assert text.get_fontsize() >= 10, text
        extent = text.get_window_extent(canvas.get_renderer())
        assert extent.x0 >= 0 and extent.y0 >= 0, text
        assert extent.x1 <= figure.bbox.width and extent.y1 <= figure.bbox.height, text
