"""Whether the candidate reads some group of samples worse than the champion, such as those of one site."""

from __future__ import annotations

from collections import defaultdict

from flows.gate.answers import read_pair, right
from flows.gate.case import Case
from flows.gate.parts import Part, compare_answers, compare_right, judge_parts, pool_small
from flows.records import Finding
from heads.catalogue import TASK_FACTS


def worst_group(case: Case) -> Finding | None:
    """The group on which the candidate loses most against the champion; None without a champion, or with fewer than two groups.

    Classes are compared by exact McNemar, other tasks by the paired bootstrap of the policy's measure, which has to be defined on
    a group; small groups count together, and samples of no group not at all.
    """
    if not case.champion:
        return None
    by_group = defaultdict(list)
    for key in case.after:
        if group := case.groups.get(key[0]):
            by_group[group].append(key)
    parts = {name: _compare(case, name, keys) for name, keys in pool_small(dict(sorted(by_group.items()))).items()}
    known = [part for part in parts.values() if part]
    measure = "accuracy" if TASK_FACTS[case.task].tells == "class" else case.measure
    return judge_parts("worst_group", "group", measure, known, case.champion_name) if len(known) > 1 else None


def _compare(case: Case, name: str, keys: list[tuple[str, str]]) -> Part | None:
    if TASK_FACTS[case.task].tells == "class":
        return compare_right(name, right(case.after, keys), right(case.before, keys))
    _, new, old = read_pair(case.task, *({key: rows[key] for key in keys} for rows in (case.after, case.before)))
    return compare_answers(name, case.task, case.measure, new, old, seed=case.seed(name))
