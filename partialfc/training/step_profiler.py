"""Traces of some steps of a run by torch.profiler, one file per rank, for TensorBoard and Perfetto."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from partialfc.config import ProfileConfig
from partialfc.runtime import timing
from partialfc.runtime.comm import DistContext
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import name_os_errors


class StepProfiler:
    """Profiler of the steps that `log.profile` names.

    A run that is resumed at the first of these steps warms up in it, and traces one step later.

    Args:
        config: Steps to trace; None: no steps.
        folder: Folder of the traces.
        dist_ctx: This rank.
    """

    def __init__(self, config: ProfileConfig | None, folder: Path, dist_ctx: DistContext) -> None:
        self._config, self._path = config, folder / f"rank_{dist_ctx.rank:05d}.pt.trace.json.gz"
        self._on_gpu = dist_ctx.device.type == "cuda"
        self._profile: profile | None = None
        self._message = ""

    def begin_step(self, number: int) -> None:
        """Start the profiler if the step, counted from 1, is due."""
        if self._config is None or self._profile is not None:
            return
        if self._config.start - 1 <= number <= self._config.start:
            self._start(self._config.steps)

    def end_step(self) -> str:
        """End a step; after the last one write the trace, which takes seconds.

        Returns:
            Message for the log; empty unless the trace was written.
        """
        if self._profile is None:
            return ""
        self._profile.step()
        if self._message:
            self.close()
        message, self._message = self._message, ""
        return message

    def close(self) -> None:
        """Write the trace of a run that ended before the last of the steps."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            timing.annotate_sections(enabled=False)

    def _start(self, steps: int) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            acc_events=True,
        )
        self._profile.start()
        timing.annotate_sections(enabled=True)

    def _write(self, traced: profile) -> None:
        try:
            with name_os_errors(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                traced.export_chrome_trace(str(self._path))
            self._message = f"traces of the profiled steps, one per rank: {self._path.parent}"
        except OSError as error:
            self._message = f"{format_error(error)}; training continues without the trace"
