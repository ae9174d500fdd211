"""A run, and what it would need."""

from typing import TYPE_CHECKING, Annotated

import typer

from partialfc.commands.options import Endpoint, JobName, Nodes, Overrides, Ranks, Recipe

if TYPE_CHECKING:
    from partialfc.launching.launcher import Launch


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    ranks: Ranks = None,
    nodes: Nodes = 1,
    endpoint: Endpoint = "localhost:0",
    name: JobName = None,
) -> None:
    """Train from a recipe, on this machine or as a SLURM job.

    ```
    partialfc train quickstart
    partialfc train mine.yaml data.path=pack head.sample_rate=0.3 --ranks 4
    ```

    One process per GPU, else two on the CPU. The same command goes on with a run that was stopped. In the batch script
    of a SLURM job it starts a launcher on each node. On several machines by hand, on each of them:

    ```
    partialfc train mine.yaml --nodes 4 --endpoint FIRST:29500 --id mine
    ```
    """
    from partialfc.launching.launcher import Launch

    raise typer.Exit(
        _launched(Launch(recipe, tuple(overrides or ()), ranks, nodes, endpoint, **_named(name)))
    )


def _launched(asked: "Launch") -> int:
    from partialfc.launching import launcher, slurm

    return slurm.run_job(asked) if slurm.in_batch_script() else launcher.launch(asked)


def _named(name: str | None) -> dict[str, str]:
    return {"name": name} if name else {}


def doctor(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="As of train.")] = "quickstart",
    overrides: Overrides = None,
    ranks: Ranks = None,
    nodes: Nodes = 1,
    endpoint: Endpoint = "localhost:0",
    name: JobName = None,
) -> None:
    """Examine the machines for a recipe, in a minute; exit code 1 where something is wrong.

    ```
    partialfc doctor mine.yaml
    sbatch --nodes=2 --ntasks-per-node=1 --wrap "partialfc doctor mine.yaml"
    ```

    Versions and devices of all ranks, the network and each collective of a step, the sharded head against the dense
    formula, images of the pack, the output's folder, some steps, a checkpoint that is written and read back.
    """
    from partialfc.launching.launcher import Launch

    raise typer.Exit(
        _launched(
            Launch(recipe, tuple(overrides or ()), ranks, nodes, endpoint, **_named(name), command="doctor")
        )
    )


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
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
    from partialfc.data.order import check_world_size
    from partialfc.errors import InputError
    from partialfc.launching.launcher import num_ranks

    config = load_config(recipe, overrides or ())
    for option, value in (("identities", identities), ("gpus", gpus), ("gpu-memory", gpu_memory)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{option} {value}: wanted a number above 0")
    if gpu not in planning.DEVICES:
        raise InputError(f"--gpu {gpu}: wanted one of {', '.join(planning.DEVICES)}")
    gpus = gpus or num_ranks(config, None, 1)
    check_world_size(config, gpus)
    memory = None if gpu_memory is None else int(gpu_memory * 2**30)
    job = planning.Job(config, identities or planning.identities_of(config), gpus)
    print(planning.report(job, gpu, memory))
