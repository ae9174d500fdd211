"""Runs, drawn and described."""

from pathlib import Path
from typing import Annotated

import typer

from partialfc.commands.options import Overwrite
from partialfc.runtime.outputs import claim_file


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of runs.")],
    out: Annotated[Path, typer.Option(help="The PNG to draw.")],
    differences: Annotated[
        bool, typer.Option("--differences", help="The losses, and how far they differ from the first run's.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw runs above each other: loss, learning rate, accuracy.

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
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    overwrite: Overwrite = False,
) -> None:
    """Write runs as one page of HTML: curves, scores, ROC, hardest pairs, settings that differ, time.

    ```
    partialfc report output/mine output/other --out report.html
    ```
    """
    from partialfc.monitoring.html_report import write_html_report

    claim_file(out, overwrite=overwrite)
    write_html_report(runs, out)
    print(out)
