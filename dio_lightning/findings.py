"""What a look at a data set finds; any data module may answer `check()` with a `Report`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from numpy.typing import NDArray

Severity = Literal["error", "warning", "note"]
"""error: training or testing would fail or be wrong; warning: suspicious; note: good to know."""


@dataclass(frozen=True)
class Finding:
    """One sentence about one or several files; without its subject, which is the file."""

    severity: Severity
    files: tuple[str, ...]
    sentence: str


@dataclass(frozen=True)
class Report:
    """What a data module says of its files.

    Attributes:
        title: the data set, for a heading.
        splits: split -> property -> text; a column of the table each.
        cases: what is known of every case, as JSON values.
        findings: see `Finding`.
        scored: splits whose pairs can be scored without registration.
    """

    title: str
    splits: dict[str, dict[str, str]] = field(default_factory=dict)
    cases: list[dict[str, object]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    scored: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def merged(findings: list[Finding]) -> list[Finding]:
    """Findings with the same sentence as one, errors first, otherwise in order of appearance."""
    files: dict[tuple[Severity, str], dict[str, None]] = {}
    for finding in findings:
        files.setdefault((finding.severity, finding.sentence), {}).update(dict.fromkeys(finding.files))
    order = {severity: place for place, severity in enumerate(get_args(Severity))}
    keys = sorted(files, key=lambda key: order[key[0]])
    return [Finding(severity, tuple(files[severity, sentence]), sentence) for severity, sentence in keys]


def grey_mask(values: "NDArray") -> str | None:
    """What to warn of if a mask, some of whose values are above 0, has several of these; None if it has one.

    Such as a map of probabilities: all that is above 0 counts as inside.
    """
    inside = values > 0
    positive = values[inside]
    largest = float(positive.max())
    if float(positive.min()) == largest:
        return None
    half = float((values > largest / 2).mean())
    sentence = f"is no mask of two values: {inside.mean():.1%} of its voxels are above 0 and count as inside"
    return f"{sentence}, {half:.1%} are above half of its largest value {largest:g}"
