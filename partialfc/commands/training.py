"""Commands on runs: train, import, doctor, sweep, plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partialfc.commands.options import (
    EndpointOption,
    JobNameOption,
    NodesOption,
    OverridesArgument,
    RanksOption,
    RecipeArgument,
    Requeue,
)

if TYPE_CHECKING:
    from partialfc.launching.launcher import LaunchRequest


def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    ranks: RanksOption = None,
    nodes: NodesOption = 1,
    endpoint: EndpointOption = "localhost:0",
    name: JobNameOption = None,
    requeue: Requeue = False,
) -> None:
    """Train from a recipe, on this machine or as a SLURM job.

    ```
    partialfc train quickstart
    partialfc train mine.yaml data.path=pack head.sample_rate=0.3 --ranks 4
    ```

    Starts one process per GPU, or two on a CPU. Rerun the same command to resume. In a SLURM job it starts a launcher
    on each node. Without SLURM, run it on each machine:

    ```
    partialfc train mine.yaml --nodes 4 --endpoint FIRST:29500 --id mine
    ```
    """
    from partialfc.launching.launcher import LaunchRequest, new_name

    raise typer.Exit(
        _launch(
            LaunchRequest(
                recipe, tuple(overrides or ()), ranks, nodes, endpoint, name or new_name(), requeue=requeue
            )
        )
    )


def _launch(request: "LaunchRequest") -> int:
    from partialfc.launching import launcher, slurm

    if slurm.in_allocation():
        return slurm.run_job(request)
    return launcher.launch(request)


def import_(
    folder: Annotated[
        Path, typer.Argument(help="Output folder of arcface_torch, with checkpoint_gpu_0.pt, ...")
    ],
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
) -> None:
    """Import a run of insightface's arcface_torch, with a recipe equivalent to its config.

    ```
    partialfc import work_dirs/wf42m_r100 mine.yaml data.path=pack output=output/on
    partialfc train mine.yaml data.path=pack output=output/on --ranks 8
    ```

    Writes backbone, class centers, optimizer state and step as a checkpoint of `output`, for any number of ranks. One
    process holds all of them. The order of the samples differs afterwards.
    """
    from partialfc.config import load_config
    from partialfc.runtime import comm
    from partialfc.training.import_insightface import import_run

    config = load_config(recipe, overrides or [])
    with comm.init_distributed("cpu") as dist_ctx:
        path, step = import_run(folder, config, dist_ctx)
    print(f"imported to {path} at step {step}; continue with: partialfc train")


def doctor(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="As in train.")] = "quickstart",
    overrides: OverridesArgument = None,
    ranks: RanksOption = None,
    nodes: NodesOption = 1,
    endpoint: EndpointOption = "localhost:0",
    name: JobNameOption = None,
    acceptance: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Check new machines for some minutes, and write all results to a JSON file.",
        ),
    ] = None,
) -> None:
    """Check the machines for a recipe within a minute; exit code 1 if there are problems.

    ```
    partialfc doctor mine.yaml
    partialfc doctor mine.yaml --acceptance machine.json
    sbatch --nodes=2 --ntasks-per-node=1 --wrap "partialfc doctor mine.yaml"
    ```

    Checks versions and devices of all ranks, the network, each collective of a step, and the sharded head against the
    dense formula. It also reads images of the pack, runs some steps, and saves and loads a checkpoint.

    `--acceptance` is for new machines. It also compares two runs bit by bit, and measures the head and the data
    workers. On one machine outside of SLURM it also checks that a run names a rank that stops.
    """
    from partialfc.launching import slurm
    from partialfc.launching.launcher import LaunchRequest, new_name

    options = () if acceptance is None else ("--acceptance", str(acceptance.absolute()))
    request = LaunchRequest(
        recipe,
        tuple(overrides or ()),
        ranks,
        nodes,
        endpoint,
        name or new_name(),
        command="doctor",
        options=options,
    )
    code = _launch(request)
    if acceptance is not None and nodes == 1 and code in (0, 1) and not slurm.in_allocation():
        code = max(code, _check_stopped_rank(request, acceptance))
    raise typer.Exit(code)


def _check_stopped_rank(request: "LaunchRequest", report: Path) -> int:
    """Check on this machine what happens if a rank stops, add the result to the report, and return the exit code."""
    from partialfc.doctor.acceptance_report import add_to_report
    from partialfc.doctor.checks import print_result
    from partialfc.doctor.stopped_rank import check_stopped_rank

    config, ranks = request.validate()
    result = check_stopped_rank(config.device, ranks)
    print_result("stop", result)
    add_to_report(report, "stop", result)
    print(f"results: {report.absolute()}")
    return int(bool(result.problems))


def sweep(
    recipe: RecipeArgument,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="SECTION.KEY=A,B",
            help="Values of a setting; 0..4: a range; a single value: for all runs.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("output/sweep"),
    ranks: RanksOption = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Run every N-th run only, starting from number I, counted from 0."),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Only tabulate the finished runs.")] = False,
    requeue: Requeue = False,
) -> None:
    """Run a recipe with every combination of some settings, and tabulate mean and interval of the scores over seeds.

    ```
    partialfc sweep faces_small loss.margin=0.45,0.5,0.55 seed=0..4 --out output/margins
    sbatch --array=0-14 --wrap "exec partialfc sweep mine.yaml loss.sigma=0.0125,0.025,0.05 seed=0..4 --requeue"
    ```

    Rerun the command to resume, or with more values to add runs; finished runs are not repeated. In a job array, each
    task runs a part of the grid.
    """
    from partialfc.config import load_config
    from partialfc.launching import slurm
    from partialfc.runtime.exit_codes import EXIT_STOPPED
    from partialfc.sweep import grid as grids
    from partialfc.sweep import runner
    from partialfc.sweep import table as tables

    grid, task_shard = grids.parse_grid(recipe, settings), runner.parse_task(shard)
    runner.require_same_configs(grid, out)
    code = 0 if table else runner.run_all(grid, out, task_shard, ranks, lambda line: print(line, flush=True))
    if requeue and code == EXIT_STOPPED:
        slurm.requeue(load_config(recipe).launch.max_requeues)
    results = tables.collect_results(grid, out)
    if results.rows:
        tables.write_sweep_results(results, out)
        _print_table(tables.table_cells(results))
    if results.num_unfinished:
        print(f"{results.num_unfinished} of {len(grid.points)} runs unfinished")
    raise typer.Exit(code)


def _print_table(cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from partialfc.runtime.text import plain

    header, *lines = cells
    shown = Table()
    for name in header:
        shown.add_column(plain(name))
    for line in lines:
        shown.add_row(*map(plain, line))
    Console().print(shown)


def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    identities: Annotated[
        int | None, typer.Option(help="Number of identities. [default: those of the recipe's pack]")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs on all machines. [default: the ranks of this machine]")
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU model: v100, a100, h100 or h200.")] = "h100",
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory per GPU. [default: that of --gpu]")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run some steps here, and predict the duration of the run.")
    ] = False,
) -> None:
    """Estimate memory and traffic of a run, and the largest number of identities. Starts nothing without --measure.

    ```
    partialfc plan webface42m_r100_pfc02 --gpus 8 --gpu a100 --identities 30000000
    partialfc plan mine.yaml --measure
    ```
    """
    import math

    from partialfc import plan as planning
    from partialfc.config import load_config
    from partialfc.data.sampler import check_world_size
    from partialfc.errors import InputError
    from partialfc.launching.launcher import LaunchRequest, num_ranks

    config = load_config(recipe, overrides or ())
    for option, value in (("identities", identities), ("gpus", gpus), ("gpu-memory", gpu_memory)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{option} {value}: expected a number above 0")
    if gpu not in planning.GPUS:
        raise InputError(f"--gpu {gpu}: expected one of {', '.join(planning.GPUS)}")
    ranks = num_ranks(config, gpus, 1) if measure else gpus
    gpus = ranks or num_ranks(config, None, 1)
    check_world_size(config, gpus)
    memory = None if gpu_memory is None else int(gpu_memory * 2**30)
    planned_run = planning.PlannedRun(config, identities or planning.num_identities(config), gpus)
    print(planning.format_plan(planned_run, gpu, memory), flush=True)
    if measure:
        request = LaunchRequest(
            recipe, tuple(overrides or ()), gpus, command="doctor", options=("--duration",)
        )
        raise typer.Exit(_launch(request))
