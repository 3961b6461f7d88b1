"""Returns over gradient steps on 2D navigation, all methods, from experiments/results/: python experiments/returns_picture.py

The paper's figure 5, left, on its 40 goals with 40 trajectories a step. Whiskers are 95% intervals over the goals, of seed 0
where there are several seeds; the dotted line is what the paper published for MAML.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tabled.data import Cell, cells

from mamllit.core.metrics import Summary
from mamllit.figures.plotting import learning_curve

SET, PREFIX, PAPER = "paper/40-shot", "rl/navigation_", "rl/navigation_maml"
PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "navigation_returns.png"


def measured() -> dict[str, Summary]:
    """A line for each cell with a result: its title without the world's name -> its values."""

    def summary(cell: Cell) -> Summary:
        entry = cell.first["results"][SET]
        values = (torch.tensor([float(value) for value in entry[name]]) for name in ("mean", "ci95", "median", "diverged"))
        return Summary(*values, entry["episodes"])

    own = (cell for cell in cells() if cell.name.startswith(PREFIX) and SET in cell.first["results"])
    return {cell.title.removesuffix(", 2D navigation"): summary(cell) for cell in own}


def picture() -> Figure:
    figure = learning_curve(measured(), "mean return", "2D navigation, the paper's 40 goals", diverging=False)
    (axes,) = figure.axes
    published = next(cell for cell in cells() if cell.name == PAPER).published[SET]
    axes.plot(list(published), list(published.values()), "k:", linewidth=1.2, label="MAML, published")
    axes.legend(fontsize=6)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE)
    asked = parser.parse_args()
    picture().savefig(asked.out, dpi=130)
    print(f"figure: {asked.out}")


if __name__ == "__main__":
    main()
