"""Reports as one HTML file with everything inside: tables, figures, sound."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import Any

_STYLE = """<meta name=viewport content="width=device-width"><style>
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #8884}
.row{display:flex;flex-wrap:wrap;gap:1rem}.row svg{width:18rem;height:auto;background:#fff;border-radius:8px}
.sample{border:1px solid #8884;border-radius:8px;padding:.6rem 1rem;margin:.8rem 0}audio{width:100%}
.who{color:#888;font-size:.85rem}p{margin:.3rem 0}</style>"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of the given HTML."""
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>{_STYLE}{body}</html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cells(tag: str, values: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values) + "</tr>"

    return "<table>" + cells("th", heads) + "".join(cells("td", row) for row in rows) + "</table>"


def player(flac: bytes) -> str:
    """Plays a FLAC file that is inside the page."""
    encoded = base64.b64encode(flac).decode()
    return f'<audio controls preload=none src="data:audio/flac;base64,{encoded}"></audio>'


def figure(draw: Callable[[Any], None], name: str) -> str:
    """What `draw` puts on matplotlib's axes, as an SVG; the same bytes for the same drawing and name."""
    import matplotlib

    # The object-oriented interface: no global figure, no screen.
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        drawn = Figure(figsize=(4, 2.6), layout="constrained")
        axes = drawn.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
