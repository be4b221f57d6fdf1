"""A report as a figure and as one page of HTML that needs no other file."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from prunelimit.figures.style import COLOURS, as_svg, legend_below, new_figure, percent_axis
from prunelimit.report import MEANING, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Height of a row of the figure in inches, and of what is around the rows.
ROW, FRAME = 0.28, 1.1

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
       background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ccc; text-align: right }
th:first-child, td:last-child { text-align: left }
.scroll { overflow-x: auto }
svg { max-width: 100%; height: auto }
"""


def _draw_limits(axis: Axes, report: Report) -> None:
    names = list(report.limits)
    for place, name in enumerate(names):
        limit, colour = report.limits[name], COLOURS.get(name, "0.3")
        axis.plot(limit.interval, [place, place], color=colour, linewidth=4, alpha=0.4, solid_capstyle="butt")
        axis.plot([limit.sparsity], [place], "o", color=colour)
        axis.annotate(f"{limit.sparsity:.1%}", (limit.sparsity, place), (0, 7), textcoords="offset points", ha="center")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.8)
    axis.set_title("the network")


def _draw_layers(axis: Axes, report: Report) -> None:
    assert report.layers is not None
    table = report.layers.table
    places = range(len(table))
    axis.barh(places, table.sparsity, color=COLOURS["directional"], alpha=0.5, label="limit if only it is pruned")
    if report.layers.common is not None:
        label = f"removed by the cut of {report.layers.common:.1%}"
        axis.plot(table.removed, places, "|", color="black", markersize=9, markeredgewidth=2, label=label)
    axis.set_yticks(places, table.layer)
    axis.set_ylim(len(table) - 0.4, -0.6)
    axis.set_title("each layer, given the others")


def plot_report(report: Report) -> Figure:
    """Draw the limits of a report with their intervals, and its layers.

    Args:
        report: The report.

    Returns:
        One panel for the network and, if the report has layers, one for them.
    """
    rows = max(len(report.limits) * 2, 0 if report.layers is None else len(report.layers.table))
    figure, axes = new_figure(1, 1 if report.layers is None else 2, width=4.6, height=max(2.6, FRAME + ROW * rows))
    _draw_limits(axes[0, 0], report)
    if report.layers is not None:
        _draw_layers(axes[0, 1], report)
        legend_below(figure, axes[0, 1])
    for axis in axes.flat:
        percent_axis(axis)
        axis.set_xlim(0, 1.02)
        axis.set_xlabel("sparsity (fraction removed)")
    return figure


def _table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _layer_table(report: Report) -> str:
    assert report.layers is not None
    common = report.layers.common
    head = ["layer", "weights", "share", "limit"]
    head += [] if common is None else [f"removed at {common:.1%}", "rise of the loss"]
    rows = []
    for row in report.layers.table.itertuples():
        cells = [str(row.layer), f"{row.weights:,}", f"{row.share:.1%}", f"{row.sparsity:.1%}"]
        rows.append(cells + ([] if common is None else [f"{row.removed:.1%}", f"{row.rise:+.3g}"]))
    return _table(f"Each layer if only it is pruned, by {report.layers.method}", head, rows)


def _limit_table(report: Report) -> str:
    rows = [
        [
            str(row.method),
            f"{row.sparsity:.1%}",
            f"{row.low:.1%} – {row.high:.1%}{'' if row.resolved else ', not resolved'}",
            f"{row.products:,}",
            f"{row.seconds:.3g}",
            MEANING[str(row.method)],
        ]
        for row in report.table.itertuples()
    ]
    return _table(
        "How far it can be pruned", ["method", "limit", "interval", "products", "seconds", "what it says"], rows
    )


def _change_table(report: Report) -> str:
    head = ["wanted limit", "curvature ×", "or R", "or tolerated rise ×", "one cut now (rise)"]
    rows = [
        [
            f"{change.sparsity:.1%}",
            f"{change.factor:.3g}",
            f"{change.radius:.3g} → {change.weights * change.radius:.3g}",
            f"{change.epsilon:.3g}",
            f"{change.rise:+.3g}",
        ]
        if change.factor < 1
        else [f"{change.sparsity:.1%}", "within already", "", "", f"{change.rise:+.3g}"]
        for change in report.changes
    ]
    return _table("What a higher limit needs, by the formula: each alone", head, rows)


def report_tables(report: Report) -> str:
    """Write findings and tables of a report as HTML, as a notebook shows them.

    Args:
        report: The report.

    Returns:
        A fragment without a figure; :func:`report_page` has it.
    """
    return "\n".join([f"<p><strong>{escape(_title(report))}</strong></p>", _findings(report), *_tables(report)])


def _tables(report: Report) -> list[str]:
    tables = [_limit_table(report)]
    tables += [_change_table(report)] if report.changes else []
    return tables + ([] if report.layers is None else [_layer_table(report)])


def _title(report: Report) -> str:
    return f"Pruning report: {report.name}"


def _findings(report: Report) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in report.findings()) + "</ul>"


def report_page(report: Report) -> str:
    """Write a report as one page of HTML; the figure is inside, and nothing is loaded from elsewhere.

    Args:
        report: The report.

    Returns:
        The page.
    """
    title = _title(report)
    spoken = "; ".join(f"{name} {limit.sparsity:.1%}" for name, limit in report.limits.items())
    picture = as_svg(report.plot(), title).decode()
    picture = picture[picture.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(spoken)}"', 1)
    first, *others = _tables(report)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _findings(report),
        first,
        picture,
        *others,
        f"<p>Cost: {report.products} curvature products, {report.seconds:.3g} seconds.</p>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"
