"""A run, and what it would need."""

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

    One process per GPU, else two on the CPU. The same command goes on with a run that was stopped. In a SLURM job it
    starts a launcher on each node. On several machines by hand, on each of them:

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


def _launch(asked: "LaunchRequest") -> int:
    from partialfc.launching import launcher, slurm

    if slurm.in_allocation():
        return slurm.run_job(asked)
    slurm.check_tasks(asked)
    return launcher.launch(asked)


def import_(
    folder: Annotated[
        Path, typer.Argument(help="The output of arcface_torch, with checkpoint_gpu_0.pt, ...")
    ],
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
) -> None:
    """Go on here with a run of insightface's arcface_torch, by a recipe that says what its config said.

    ```
    partialfc import work_dirs/wf42m_r100 mine.yaml data.path=pack output=output/on
    partialfc train mine.yaml data.path=pack output=output/on --ranks 8
    ```

    The backbone, all class centres, what the optimizer keeps of both, and the step become a checkpoint of `output`, for any
    number of ranks. One process holds them at once. Its data come in another order from there on.
    """
    from partialfc.config import load_config
    from partialfc.runtime import comm
    from partialfc.training.import_insightface import import_run

    config = load_config(recipe, overrides or [])
    with comm.init_distributed("cpu") as dist_ctx:
        path, step = import_run(folder, config, dist_ctx)
    print(f"{path}: at step {step}; partialfc train goes on from it")


def doctor(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="As of train.")] = "quickstart",
    overrides: OverridesArgument = None,
    ranks: RanksOption = None,
    nodes: NodesOption = 1,
    endpoint: EndpointOption = "localhost:0",
    name: JobNameOption = None,
) -> None:
    """Examine the machines for a recipe, in a minute; exit code 1 where something is wrong.

    ```
    partialfc doctor mine.yaml
    sbatch --nodes=2 --ntasks-per-node=1 --wrap "partialfc doctor mine.yaml"
    ```

    Versions and devices of all ranks, the network and each collective of a step, the sharded head against the dense
    formula, images of the pack, the output's folder, some steps, a checkpoint that is written and read back.
    """
    from partialfc.launching.launcher import LaunchRequest, new_name

    raise typer.Exit(
        _launch(
            LaunchRequest(
                recipe, tuple(overrides or ()), ranks, nodes, endpoint, name or new_name(), command="doctor"
            )
        )
    )


def sweep(
    recipe: RecipeArgument,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="SECTION.KEY=A,B", help="Values of a setting; 0..4: those numbers; one value: for all."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder of all runs.")] = Path("output/sweep"),
    ranks: RanksOption = None,
    task: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run every N-th alone, from number I, counted from 0.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; tabulate what has finished.")] = False,
    requeue: Requeue = False,
) -> None:
    """Run a recipe with every combination of some settings, and tabulate the scores: mean and interval over seeds.

    ```
    partialfc sweep faces_small loss.margin=0.45,0.5,0.55 seed=0..4 --out output/margins
    sbatch --array=0-14 --wrap "exec partialfc sweep mine.yaml loss.sigma=0.0125,0.025,0.05 seed=0..4 --requeue"
    ```

    The same call goes on where it was stopped, and adds what is new in it; runs that have finished are left as they are. In
    a job array each task runs its share.
    """
    from partialfc.config import load_config
    from partialfc.launching import slurm
    from partialfc.runtime.exit_codes import EXIT_STOPPED
    from partialfc.sweep import grid as grids
    from partialfc.sweep import runner
    from partialfc.sweep import table as tables

    grid, share = grids.parse_grid(recipe, settings), runner.parse_task(task)
    runner.require_same_configs(grid, out)
    code = 0 if table else runner.run_all(grid, out, share, ranks, lambda line: print(line, flush=True))
    if requeue and code == EXIT_STOPPED:
        slurm.requeue(load_config(recipe).launch.max_requeues)
    results = tables.collect_results(grid, out)
    if results.rows:
        tables.write_sweep_results(results, out)
        _print_table(tables.table_cells(results))
    if results.num_unfinished:
        print(f"{results.num_unfinished} of {len(grid.points)} runs have not finished")
    raise typer.Exit(code)


def _print_table(cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    header, *lines = cells
    shown = Table(*header)
    for line in lines:
        shown.add_row(*line)
    Console().print(shown)


def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    identities: Annotated[int | None, typer.Option(help="Default: those of the recipe's pack.")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Over all machines; default: the ranks of this one.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="v100, a100, h100 or h200.")] = "h100",
    gpu_memory: Annotated[float | None, typer.Option(metavar="GIB", help="Default: that of --gpu.")] = None,
) -> None:
    """Say what a run would need: memory, traffic, how many identities fit. Starts nothing.

    ```
    partialfc plan webface42m_r100_pfc02 --gpus 8 --gpu a100 --identities 30000000
    ```
    """
    import math

    from partialfc import plan as planning
    from partialfc.config import load_config
    from partialfc.data.sampler import check_world_size
    from partialfc.errors import InputError
    from partialfc.launching.launcher import num_ranks

    config = load_config(recipe, overrides or ())
    for option, value in (("identities", identities), ("gpus", gpus), ("gpu-memory", gpu_memory)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{option} {value}: wanted a number above 0")
    if gpu not in planning.GPUS:
        raise InputError(f"--gpu {gpu}: wanted one of {', '.join(planning.GPUS)}")
    gpus = gpus or num_ranks(config, None, 1)
    check_world_size(config, gpus)
    memory = None if gpu_memory is None else int(gpu_memory * 2**30)
    job = planning.PlannedRun(config, identities or planning.num_identities(config), gpus)
    print(planning.format_plan(job, gpu, memory))
