"""Result of a check."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CheckResult:
    """Result of a check, equal on all ranks."""

    lines: list[str]
    problems: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)  # measured values
