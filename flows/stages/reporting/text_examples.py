"""Texts of the holdout that the candidate reads rightly and wrongly, their tokens coloured, for its MLflow run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from flows.errors import HeadstartError
from flows.records import DataVersion
from flows.sample_files import locate
from flows.stages.reporting.card_text import NUM_EXAMPLES, TargetStanding, surest
from heads.catalogue import TASK_FACTS
from heads.errors import HeadsError
from heads.tasks.rows import Scored

NUM_COLOURED = 4
SNIPPET_CHARS = 80
HOW = {
    "attention": "colours: the head's attention",
    "gradient x input": "colours: gradient x input, orange for the answer",
}


def text_pictures(version: DataVersion, path: Path, standings: Sequence[TargetStanding]) -> dict[str, bytes]:
    """A picture a target: the right and the wrong answers that the bundle at `path` is surest of.

    Nothing of images, and of targets whose rows the verdict keeps to itself; texts that cannot be read any more are left out.
    """
    from flows.pictures import ColouredText, coloured_texts, picture_file
    from heads import bundle as bundles
    from heads.bundle.token_weights import weigh_tokens

    told = [standing for standing in standings if standing.rows]
    if version.modality != "text" or not told:
        return {}
    bundle, by_digest = bundles.load(path), {sample.digest: sample for sample in version.samples if sample.split == "test"}
    tasks, pictures = {head.target: head.task for head in bundle.variant.heads}, dict[str, bytes]()
    for standing in told:
        if TASK_FACTS[tasks[standing.target]].tells not in ("class", "labels"):
            continue
        shown, how = [], ""
        for row in chain(*surest(standing.rows, NUM_COLOURED)):
            try:
                text = weigh_tokens(bundle, locate(version, by_digest[row.digest]), standing.target)
            except (HeadstartError, HeadsError, KeyError):
                continue
            how = HOW[text.how]
            shown.append(ColouredText(_words(row), [(token.text, token.continues, token.weight) for token in text.tokens]))
        if shown:
            name = picture_file("examples", standing.target)
            pictures[name] = coloured_texts(shown, f"{standing.target}, surest right and wrong; {how}")
    return pictures


def snippets(version: DataVersion, standings: Sequence[TargetStanding]) -> dict[str, str]:
    """The beginnings of the texts that a card may name, by digest, in quotes; those that cannot be read are left out."""
    from heads.data.text_preprocess import decode_text

    found, shown = dict[str, str](), [surest(standing.rows, NUM_EXAMPLES) for standing in standings]
    named = {row.digest for right, wrong in shown for row in (*right, *wrong)}
    for sample in version.samples:
        if sample.digest in named and sample.split == "test":
            try:
                text = " ".join(decode_text(locate(version, sample)).split())
            except (HeadstartError, HeadsError):
                continue
            short = text if len(text) <= SNIPPET_CHARS else f"{text[: SNIPPET_CHARS - 1]}…"
            found[sample.digest] = f'"{short}"'
    return found


def _words(row: Scored) -> str:
    truth = row.truth or "nothing"
    read = "read rightly" if row.predicted == row.truth else f"read as {row.predicted or 'nothing'}"
    return f"{truth}, {read} ({row.probability:.2f})"
