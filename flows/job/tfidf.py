"""TF-IDF of words and pairs of words with logistic regression: the plain model of texts, which knows no encoder.

It is fitted by scikit-learn, which is loaded here alone, where one is fitted or read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flows.job.one_target import OfOneTarget
from heads.data.text_preprocess import decode_text
from heads.data.wordpiece import words_of
from heads.spec import Head
from heads.tasks.answers import Answer
from heads.tasks.table import TASKS
from heads.tasks.temperature import tempered

Floats = NDArray[np.float32]
# Of very many classes fewer terms are weighed, the most frequent ones: the memory of a fit grows with both.
MAX_TERMS, MAX_WEIGHTS = 2**16, 2**22
# A text of more words says in the first of them what it is about.
MAX_WORDS = 2000
# The inverse of the penalty: rows of TF-IDF have the length 1, and few are alike.
INVERSE_PENALTY = 10.0
# A fit ends when no weight moves by more than this share of the greatest in one round of the texts.
SHIFT, MAX_ROUNDS = 1e-3, 2000
# The log odds of a class or label that never occurs in training.
NEVER = -20.0


@dataclass(frozen=True, eq=False)
class TfidfModel(OfOneTarget):
    """A fitted model of one target: its terms with their weights in a text (T), those of each class (C, T), and biases (C)."""

    terms: tuple[str, ...] = field(repr=False)
    idf: Floats = field(repr=False)
    weights: Floats = field(repr=False)
    biases: Floats = field(repr=False)
    cutoffs: tuple[float, ...] = ()
    temperature: float | None = None

    @property
    def thresholds(self) -> Mapping[str, tuple[float, ...]]:
        """The probability from which on each label is predicted; of classes none."""
        return {self.head.target: self.cutoffs} if self.cutoffs else {}

    @property
    def num_parameters(self) -> int:
        """How many numbers were fitted."""
        return self.weights.size + self.biases.size

    @cached_property
    def _vectorizer(self) -> Any:
        known = _vectorizer(vocabulary=list(self.terms))
        known.idf_ = self.idf
        return known

    def logits(self, files: Sequence[Path | bytes]) -> torch.Tensor:
        """The logits (N, C) of texts in files or bytes. Raises TextError, naming it, if one cannot be read."""
        rows = self._vectorizer.transform([decode_text(file) for file in files])
        return torch.from_numpy(np.asarray(rows @ self.weights.T + self.biases, dtype=np.float32))

    def predict(self, files: Sequence[Path | bytes], batch_size: int = 32) -> list[dict[str, Answer]]:
        """An answer for each text, in order, as a bundle gives them. Raises TextError, naming it, if one cannot be read."""
        task, cutoffs = TASKS[self.head.task], self.cutoffs or None
        rows = tempered(self.logits(files), self.temperature)
        return [{self.head.target: task.answer(self.names, row, (0, 0), cutoffs)} for row in rows]

    def to_bytes(self) -> bytes:
        """The model as one file of arrays, which `read_tfidf` reads."""
        texts = {"head": self.head.model_dump_json(), "names": json.dumps(self.names), "terms": json.dumps(self.terms)}
        arrays: dict[str, Any] = {name: np.array(text) for name, text in texts.items()}
        arrays |= {"idf": self.idf, "weights": self.weights, "biases": self.biases, "cutoffs": np.array(self.cutoffs)}
        arrays |= {} if self.temperature is None else {"temperature": np.array(self.temperature)}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()


def read_tfidf(content: bytes) -> TfidfModel:
    """The model that `to_bytes` wrote. No object in the file is unpickled."""
    with np.load(io.BytesIO(content), allow_pickle=False) as read:
        return TfidfModel(
            head=Head.model_validate_json(str(read["head"])),
            names=tuple(json.loads(str(read["names"]))),
            terms=tuple(json.loads(str(read["terms"]))),
            idf=read["idf"],
            weights=read["weights"],
            biases=read["biases"],
            cutoffs=tuple(map(float, read["cutoffs"])),
            temperature=float(read["temperature"]) if "temperature" in read else None,
        )


def fit_model(head: Head, names: Sequence[str], texts: Sequence[str], labels: torch.Tensor) -> TfidfModel:
    """The model of labelled texts (N) with class numbers (N), or zeros and ones a label (N, C).

    Raises ValueError if no text has a word.
    """
    vectorizer = _vectorizer(max_features=max(1, min(MAX_TERMS, MAX_WEIGHTS // len(names))))
    rows = vectorizer.fit_transform(texts)
    fit = _fit_classes if labels.ndim == 1 else _fit_labels
    weights, biases = fit(rows, labels.numpy(), len(names))
    terms = tuple(str(term) for term in vectorizer.get_feature_names_out())
    return TfidfModel(head, tuple(names), terms, vectorizer.idf_.astype(np.float32), weights, biases)


def _vectorizer(**chosen: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        tokenizer=_words, token_pattern=None, lowercase=False, ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32, **chosen
    )


def _words(text: str) -> list[str]:
    """Words without punctuation and single ASCII letters, as scikit-learn parts them; CJK letters stand alone."""
    # Vowel signs, such as of Hindi, are no letters.
    words = (word for word in words_of(text, lowercase=True) if any(map(str.isalnum, word)))
    told = (word for word in words if len(word) > 1 or not word.isascii())
    return list(islice(told, MAX_WORDS))


def _fit_classes(rows: Any, labels: NDArray[np.int64], num_classes: int) -> tuple[Floats, Floats]:
    present = np.unique(labels)
    weights = np.zeros((num_classes, rows.shape[1]), np.float32)
    biases = np.full(num_classes, NEVER, np.float32)
    biases[present] = 0.0
    if len(present) > 1:
        fitted = _regression().fit(rows, labels)
        # Of two classes the second one's log odds.
        chosen = present if len(present) > 2 else present[1:]
        weights[chosen], biases[chosen] = fitted.coef_, fitted.intercept_
    return weights, biases


def _fit_labels(rows: Any, labels: NDArray[np.int64], num_labels: int) -> tuple[Floats, Floats]:
    weights, biases = np.zeros((num_labels, rows.shape[1]), np.float32), np.empty(num_labels, np.float32)
    for place, column in enumerate(labels.T):
        if column.min() == column.max():
            biases[place] = -NEVER if column[0] else NEVER
        else:
            fitted = _regression().fit(rows, column)
            weights[place], biases[place] = fitted.coef_[0], fitted.intercept_[0]
    return weights, biases


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    # Of sparse rows of one length SAG finds the minimum in a twentieth of L-BFGS's time: 1 s in place of 20 on banking77.
    return LogisticRegression(C=INVERSE_PENALTY, solver="sag", tol=SHIFT, max_iter=MAX_ROUNDS, random_state=0)
