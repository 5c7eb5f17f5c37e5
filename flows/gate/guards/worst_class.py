"""Whether the candidate reads some class worse than the champion, however well it reads all of them together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from flows.gate.answers import read_pair, right
from flows.gate.case import Case
from flows.gate.measures import Answers
from flows.gate.parts import Part, compare_answers, compare_right, judge_parts, pool_small
from flows.records import Finding
from heads.catalogue import TASK_FACTS


def worst_class(case: Case) -> Finding | None:
    """The class in which the candidate loses most against the champion; None without a champion.

    Of classes the samples of each true class are compared by exact McNemar, small classes together; of label sets each label's
    yes or no on all samples; of masks each value's IoU, of tags each type's F1, by the paired bootstrap over the samples where
    either model finds it or it is.
    """
    if not case.champion:
        return None
    match TASK_FACTS[case.task].tells:
        case "class":
            return judge_parts("worst_class", "class", "recall", _classes(case), case.champion_name)
        case "labels":
            return judge_parts("worst_class", "label", "accuracy", _labels(case), case.champion_name)
        case "pixels":
            return judge_parts("worst_class", "value", "IoU", _counted(case, "miou"), case.champion_name)
        case "tags":
            return judge_parts("worst_class", "type", "F1", _counted(case, "span_f1"), case.champion_name)


def _classes(case: Case) -> Sequence[Part]:
    by_class = defaultdict(list)
    for key, row in case.after.items():
        by_class[row.truth].append(key)
    parts = pool_small(dict(sorted(by_class.items())))
    return [compare_right(name, right(case.after, keys), right(case.before, keys)) for name, keys in parts.items()]


def _labels(case: Case) -> Sequence[Part]:
    names, new, old = read_pair(case.task, case.after, case.before)
    told = [(answers.guesses == answers.truths).T for answers in (new, old)]
    return [compare_right(name, *pair) for name, *pair in zip(names, *told, strict=True)]


def _counted(case: Case, measure: str) -> Sequence[Part]:
    names, new, old = read_pair(case.task, case.after, case.before)

    def column(answers: Answers, number: int) -> Answers:
        there = (new.truths + new.guesses + old.guesses)[:, number] > 0
        return Answers(*(part[there, number : number + 1] for part in (answers.truths, answers.guesses, answers.hits)))

    columns = [(name, column(new, number), column(old, number)) for number, name in enumerate(names)]
    parts = [compare_answers(name, case.task, measure, *pair, seed=case.seed(name)) for name, *pair in columns]
    return [part for part in parts if part]
