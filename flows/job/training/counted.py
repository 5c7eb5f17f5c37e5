"""The baselines of a training job that count words: of classes and labels TF-IDF, of tags a list of words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from flows.baselines import TFIDF, WORD_LIST, Baseline, BaselineFolder, counted_of
from flows.errors import AskedWrongly
from flows.job.datasets import Splits
from flows.job.tfidf import TfidfModel, fit_model
from flows.job.training.baseline import choose, describe_share
from flows.job.word_list import WordList, list_words
from heads.data.labels import has_label
from heads.data.tags import Tags, pad_tags
from heads.data.text_preprocess import decode_text
from heads.data.wordpiece import split_words
from heads.distributed import single_process
from heads.errors import HeadsError
from heads.spec import Head
from heads.tasks.table import TASKS
from heads.training.metrics import MetricAccumulator, MetricTotals, named_measures

LOG = logging.getLogger(__name__)
# So many sentences are measured at once.
BATCH_SIZE = 32


@dataclass(frozen=True)
class _Fitted:
    """A fitted model, its measures on validation by `<target>/<measure>`, and how many training samples it is of."""

    model: TfidfModel | WordList
    measures: Mapping[str, float]
    num_samples: int
    labels: Tensor


def fit_counted(splits: Splits) -> None:
    """Fit the baseline of a job that counts the words of train; write its file, and then itself, or why there is none.

    In one process.
    """
    job, since = splits.job, monotonic()
    folder = BaselineFolder.of(job.storage, job.counted)
    (head,) = (head for head in job.works[0].variant.heads if head.target == job.target)
    kind = counted_of(head.task)
    assert kind is not None, "none is asked for"
    try:
        fitted = _FITS[kind.kind](splits, head)
    except (HeadsError, AskedWrongly) as error:
        # A text that is gone or cannot be read; the works may not need it. The next training tries again.
        LOG.warning("no %s was fitted: %s", kind.label, error)
        return
    except ValueError as error:
        folder.write_failure(str(error))
        return
    folder.place.write(kind.file, fitted.model.to_bytes())
    folder.write(
        Baseline(
            kind=kind.kind,
            label=kind.label,
            metrics={f"val/{name}": value for name, value in fitted.measures.items()},
            num_parameters=fitted.model.num_parameters,
            num_samples=fitted.num_samples,
            seconds=round(monotonic() - since, 3),
            note=describe_share(fitted.num_samples, fitted.labels),
        )
    )


def _fit_tfidf(splits: Splits, head: Head) -> _Fitted:
    files, labels = splits.labelled("train", (head,))
    places = _places(splits, head, labels[head.target])
    texts = [decode_text(files[place]) for place in places.tolist()]
    model = fit_model(head, splits.job.classes[head.target], texts, labels[head.target][places])
    model, total = _measured(model, *splits.labelled("val", (head,)))
    return _Fitted(model, named_measures({head.target: total}), len(places), labels[head.target])


def _measured(model: TfidfModel, files: Sequence[Path | bytes], labels: Mapping[str, Tensor]) -> tuple[TfidfModel, MetricTotals]:
    """The model with the temperature and the thresholds that validation asks for, and its measures there."""
    target, known = model.head.target, has_label(labels[model.head.target])
    with single_process():
        seen = MetricAccumulator({target: model.head.task}, keeps_scores=True)
        told = model.logits([files[place] for place in known.nonzero()[:, 0].tolist()])
        seen.add({target: told}, {target: labels[target][known]}, torch.ones(len(told)))
        total = seen.totals()[target]
    return replace(model, cutoffs=tuple(total.thresholds or ()), temperature=total.temperature), total


def _fit_word_list(splits: Splits, head: Head) -> _Fitted:
    files, tags = splits.tagged("train", head)
    places = _places(splits, head, tags.known())
    sentences = (_sentence(files, tags, place) for place in places.tolist())
    model = list_words(head, splits.job.classes[head.target], ((words, row.tolist()) for words, row in sentences))
    measures = _measure_list(model, *splits.tagged("val", head))
    return _Fitted(model, {f"{head.target}/{name}": value for name, value in measures.items()}, len(places), tags.known())


def _measure_list(model: WordList, files: Sequence[Path | bytes], tags: Tags) -> dict[str, float]:
    """The measures on validation: no loss, since it tells no probabilities."""
    task, places, counts = TASKS[model.head.task], has_label(tags.known()).nonzero()[:, 0].tolist(), list[Tensor]()
    for start in range(0, len(places), BATCH_SIZE):
        words, rows = zip(*(_sentence(files, tags, place) for place in places[start : start + BATCH_SIZE]), strict=True)
        counts.append(task.count(model.logits(words), pad_tags(rows), torch.ones(len(rows))))
    if not counts:
        raise ValueError(f"no validation text has a label of {model.head.target!r}")
    return task.measures(torch.stack(counts).sum(dim=0), None)


def _sentence(files: Sequence[Path | bytes], tags: Tags, place: int) -> tuple[tuple[str, ...], Tensor]:
    row = tags.rows[place]
    assert row is not None, "it has tags"
    return split_words(decode_text(files[place])), row


def _places(splits: Splits, head: Head, labels: Tensor) -> Tensor:
    """The places of the training samples that are counted. Raises ValueError if there are none."""
    places = choose(splits.digests("train"), labels)
    if not len(places):
        raise ValueError(f"no training text has a label of {head.target!r}")
    return places


_FITS = {TFIDF.kind: _fit_tfidf, WORD_LIST.kind: _fit_word_list}
