"""A version's card in Markdown: verdict, data, measures, reliability, examples, how to load it, licence. Text alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flows.gate.standing import Accuracy, Bin
from flows.records import Sample, Verdict
from flows.words import counted, short
from heads.tasks.rows import Scored

SPLITS = ("train", "val", "test")
MAX_PARTS = 40
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class TargetStanding:
    """How a target of the holdout is read: its measures, accuracies of all, classes and groups, reliability, and its rows."""

    target: str
    measures: Mapping[str, float]
    accuracies: Mapping[str, Sequence[Accuracy]]
    bins: Sequence[Bin]
    rows: Sequence[Scored] = ()


@dataclass(frozen=True)
class CardFacts:
    """What a card tells of a version. `standings` is empty while the gate keeps the holdout to itself.

    `before` are the samples that the champion before it was made from, None if they are not known; `files` has a holdout
    sample's file, or the beginning of a text, by digest, `pictures` the names of the pictures in the version's run.
    """

    name: str
    version: str
    verdict: Verdict
    data_version: str
    git_commit: str
    samples: Sequence[Sample]
    before: Sequence[Sample] | None
    champion: str | None
    standings: Sequence[TargetStanding]
    licence: str
    bundle_card: str
    run_id: str = ""
    of_texts: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[str] = ()


def write_version_card(facts: CardFacts) -> str:
    """The card; the bundle's own follows at its end."""
    sections = [
        f"# {facts.name}, version {facts.version}",
        _verdict(facts.verdict),
        _data(facts),
        *[_standing(standing, facts) for standing in facts.standings],
        _pictures(facts),
        _loading(facts),
        f"## Licence of the weights\n\n{facts.licence}",
        "---",
        facts.bundle_card.strip(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def with_verdict(card: str, verdict: Verdict) -> str:
    """A card with another verdict in place of its own; one that tells none gets it after its first heading."""
    sections = card.split("\n\n## ")
    kept = [section for section in sections[1:] if not section.startswith("Verdict: ")]
    return "\n\n## ".join([sections[0], _verdict(verdict).removeprefix("## "), *kept])


def describe_change(before: Sequence[Sample], after: Sequence[Sample]) -> list[str]:
    """What changed between two data versions, a line each: samples added and removed by split, moved, labelled otherwise."""
    old, new = ({sample.digest: sample for sample in samples} for samples in (before, after))
    lines = []
    for split in SPLITS:
        added = sum(new[digest].split == split for digest in new.keys() - old.keys())
        removed = sum(old[digest].split == split for digest in old.keys() - new.keys())
        if added or removed:
            lines.append(f"{split}: {added} added, {removed} removed")
    kept = [(old[digest], new[digest]) for digest in old.keys() & new.keys()]
    relabelled = {split: sum(dict(a.labels) != dict(b.labels) for a, b in kept if b.split == split) for split in SPLITS}
    lines += [f"{split}: {number} labelled otherwise" for split, number in relabelled.items() if number]
    if moved := sum(a.split != b.split for a, b in kept):
        lines.append(f"{counted(moved, 'sample')} in another split")
    return lines or ["the same samples with the same labels"]


def _verdict(verdict: Verdict) -> str:
    head = f"## Verdict: {'promoted' if verdict.promoted else 'not promoted'}"
    if not verdict.findings:
        return "\n".join([head, "", *(f"- {reason}" for reason in verdict.reasons)])
    marks = {(True, True): "passed", (True, False): "passed", (False, True): "**not passed**", (False, False): "warning"}
    lines = [f"- `{one.guard}`, {marks[one.passed, one.blocks]}: {one.words}" for one in verdict.findings]
    return "\n".join([head, "", *lines, *(f"- {note}" for one in verdict.findings for note in one.notes)])


def _data(facts: CardFacts) -> str:
    counts = ", ".join(f"{split} {sum(s.split == split for s in facts.samples)}" for split in SPLITS)
    lines = [f"- version `{short(facts.data_version)}`, commit `{facts.git_commit}`", f"- samples: {counts}"]
    if facts.champion is None:
        lines.append("- the first version: there was no champion")
    elif facts.before is None:
        lines.append(f"- the data of version {facts.champion}, the champion before, is not on this machine to compare with")
    else:
        changes = "; ".join(describe_change(facts.before, facts.samples))
        lines.append(f"- since version {facts.champion}, the champion before: {changes}")
    return "\n".join(["## Data", "", *lines])


def _standing(standing: TargetStanding, facts: CardFacts) -> str:
    measures = ", ".join(f"{name} {value:.4f}" for name, value in standing.measures.items())
    parts = [f"## Holdout: {standing.target}", measures]
    rows = [(kind, one) for kind, found in standing.accuracies.items() for one in found[:MAX_PARTS]]
    if rows:
        lines = [
            f"| {_cell(one.name)} | {kind} | {one.num_samples} | {one.value:.3f} | {one.low:.3f} to {one.high:.3f} |"
            for kind, one in rows
        ]
        parts.append("\n".join(["| part | of | samples | accuracy | 95 % interval |", "|---|---|---|---|---|", *lines]))
        if more := sum(max(0, len(found) - MAX_PARTS) for found in standing.accuracies.values()):
            parts.append(f"{more} more parts are left out.")
    if standing.bins:
        lines = [
            f"| {one.low:.1f} to {one.high:.1f} | {one.num_answers} | {one.probability:.3f} | {one.right:.3f} |"
            for one in standing.bins
        ]
        head = [
            "How often answers of each probability are right:",
            "",
            "| probability | answers | mean | right |",
            "|---|---|---|---|",
        ]
        parts.append("\n".join([*head, *lines]))
    if standing.rows:
        right, wrong = surest(standing.rows, NUM_EXAMPLES)
        parts += [_examples("Right", right, facts), _examples("Wrong", wrong, facts)]
    return "\n\n".join(part for part in parts if part)


def surest(rows: Sequence[Scored], most: int) -> tuple[list[Scored], list[Scored]]:
    """The right and the wrong answers that the model is surest of, the surest first, at most so many of each."""
    ranked = sorted(rows, key=lambda row: -row.probability)
    right, wrong = ([row for row in ranked if (row.predicted == row.truth) == is_right] for is_right in (True, False))
    return right[:most], wrong[:most]


def _examples(kind: str, rows: Sequence[Scored], facts: CardFacts) -> str:
    if not rows:
        return ""
    told = [
        f"- {facts.files.get(row.digest, row.digest)}: {row.truth or 'nothing'}"
        + ("" if row.predicted == row.truth else f", read as {row.predicted or 'nothing'}")
        + f" ({row.probability:.2f})"
        for row in rows
    ]
    return "\n".join([f"{kind}, the surest first:", "", *told])


def _pictures(facts: CardFacts) -> str:
    if not facts.pictures:
        return ""
    names = ", ".join(f"`{name}`" for name in facts.pictures)
    return f"## Pictures\n\nIn MLflow's run `{facts.run_id}`, under `pictures`: {names}. The verdict's are in its parent run."


def _loading(facts: CardFacts) -> str:
    sample = "some text" if facts.of_texts else "photo.jpg"
    return (
        f"## How to load it\n\n```sh\nheadstart models pull {facts.name}@{facts.version} ./model\n```\n\n"
        "```python\nimport heads.bundle\n\n"
        f'bundle = heads.bundle.load("model")\nprint(bundle.predict(["{sample}"])[0])\n```'
    )


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
