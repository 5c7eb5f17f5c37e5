"""The progress of a training, read from its files and reported to the session's listeners."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from flows import job
from flows.stages.background.watching import watching
from flows.stages.session import Event, RetrainingSession
from flows.stages.values import WorkPlan

EVERY_SECONDS = 1.0


@contextlib.contextmanager
def showing_progress(session: RetrainingSession, work_plan: WorkPlan, training_job: job.Job) -> Iterator[None]:
    """Report in the block, from a thread, the features and epochs that the job noted, lost nodes, and what lost workers cost.

    A listener's error is logged and does not end the thread. In a bucket each look is two listings and a read of each note.
    """
    num_reported = [0, 0]
    before: Event | None = None
    finished = {work.key for work in work_plan.works if work_plan.is_done(session.settings, work)}

    def report_interruptions() -> None:
        for number, lines in enumerate((training_job.folder.read_nodes(), training_job.folder.read_interruptions())):
            for line in lines[num_reported[number] :]:
                num_reported[number] += 1
                session.say(line)

    def watch() -> None:
        nonlocal before
        report_interruptions()
        event = _progress(work_plan, training_job, finished, before)
        if event != before:
            before = event
            session.tell(event)

    try:
        with watching(watch, max(EVERY_SECONDS, training_job.place.look_seconds)):
            yield
    finally:
        report_interruptions()
    session.tell(Event(share=1.0))


def _progress(work_plan: WorkPlan, training_job: job.Job, finished: Collection[str], before: Event | None) -> Event:
    """The progress of a training as an event; the share never falls, and if features are to be stored, they are half of it.

    `finished` are the keys of works that were finished before.
    """
    noted, whole = training_job.folder.epochs(), {work.key: work.variant.fit.epochs for work in work_plan.works}
    done = {key: num if key in finished else noted[key].num_bytes if key in noted else 0 for key, num in whole.items()}
    stored, to_store = training_job.folder.num_stored()
    share = sum(done.values()) / sum(whole.values())
    if to_store:
        share = (stored / to_store + share) / 2
    epochs = {work_plan.label(work): (done[work.key], whole[work.key]) for work in work_plan.works}
    least = before.share or 0.0 if before else 0.0
    return Event(share=max(share, least), epochs=epochs, features=(stored, to_store) if to_store else None)
