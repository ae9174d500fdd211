"""Commands on runs: plot, report."""

from pathlib import Path
from typing import Annotated

import typer

from partialfc.commands.options import Overwrite
from partialfc.runtime.outputs import claim_file


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of runs.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    differences: Annotated[
        bool,
        typer.Option(
            "--differences", help="Plot the losses and their relative differences from the first run."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Plot loss, learning rate and scores of runs in one figure.

    ```
    partialfc plot output/first output/second --out runs.png
    ```
    """
    from partialfc.monitoring.plots import plot_loss_differences, plot_runs

    claim_file(out, overwrite=overwrite)
    metrics = [run / "metrics.jsonl" for run in runs]
    if not differences:
        plot_runs(metrics, out)
        return
    for name, difference in plot_loss_differences(metrics, out).items():
        print(f"{name}: largest relative difference of the loss {difference:.1e}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of runs.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    overwrite: Overwrite = False,
) -> None:
    """Write an HTML report of runs: curves, scores, ROC, hardest pairs, settings that differ, time per step.

    ```
    partialfc report output/mine output/other --out report.html
    ```
    """
    from partialfc.monitoring.html_report import write_html_report

    claim_file(out, overwrite=overwrite)
    write_html_report(runs, out)
    print(out)
