"""What one look has found."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CheckResult:
    """The same on all ranks."""

    lines: list[str]
    problems: list[str] = field(default_factory=list)
