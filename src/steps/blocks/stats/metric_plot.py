"""What a run has written about itself: drawn over its steps, copied where somebody wants it.

Plots stand in the run and not in the model: a picture must not change what a model is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

COPIED = ("metrics.jsonl", "tensorboard", "plots", "samples")


def draw_metrics(
    lines: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]], path: Path
) -> Path | None:
    """Draw lines of ``metrics.jsonl`` over steps; ``panels`` gives ``{title: {metric: label}}``.

    What is measured at validations alone gets marks, and so does a single point, which no line
    would show. Panels without a point are left out. None where nothing is left, or matplotlib is
    not installed.
    """
    points = {
        name: [(line["step"], float(line[name])) for line in lines if name in line]
        for metrics in panels.values()
        for name in metrics
    }

    def draw(axes: Any, title: str) -> None:
        for name, label in panels[title].items():
            if points[name]:
                steps, values = zip(*points[name], strict=True)
                marked = "validation" in name or len(steps) == 1
                axes.plot(steps, values, label=label, marker="o" if marked else None)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8)

    shown = [title for title, metrics in panels.items() if any(points[name] for name in metrics)]
    return draw_panels(path, dict.fromkeys(shown, draw)) if shown else None


def draw_panels(
    path: Path,
    panels: Mapping[str, Callable[[Any, str], None]],
    *,
    size: tuple[float, float] = (4, 3.6),
) -> Path | None:
    """Draw panels side by side into the PNG ``path``; each gets its axes and its name.

    ``size`` is that of a panel in inches. None where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    width, height = size
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, draw) in zip(columns, panels.items(), strict=True):
        draw(axes, name)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    # Without the software's version in it the same figures give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def copy_logs(run_dir: Path, target: Path) -> None:
    """Copy metrics, TensorBoard files, plots and samples to ``exp_manager.explicit_log_dir``."""
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = run_dir / name
        if source.is_dir():
            shutil.copytree(source, target / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, target / name)
