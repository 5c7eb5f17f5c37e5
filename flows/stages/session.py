"""A retraining session: the lock of the model name, the MLflow clients, the Ray cluster, and the listeners to its events."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

from flows import cluster, dataset, job, tracking
from flows.cluster import Cluster, open_cluster
from flows.environment import user_name
from flows.errors import Busy
from flows.places import as_root, open_place
from flows.places.check import check_root
from flows.places.locks import Held, Lock, Locks, locks_of
from flows.plan import Plan
from flows.registry import Registry
from flows.settings import Settings
from flows.stages.background.beside import Beside
from flows.stages.background.warming import warm

# A nightly run and one by hand may meet: the second waits for the first, within reason.
WAIT_SECONDS = 6 * 3600.0


@dataclass(frozen=True)
class Event:
    """News of a retraining for people: words, the share of the training that is done, epochs (done, all) by variant.

    `features` counts the samples (done, all) that go through frozen trunks into the feature store, before epochs read them.
    """

    text: str = ""
    share: float | None = None
    epochs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    features: tuple[int, int] | None = None


Listener = Callable[[Event], None]
_LISTENERS: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hand every event of the retrainings in this block to `listener` too."""
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


class RetrainingSession:
    """The tools of one retraining, each opened when it is first needed; made by `open_session`."""

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        flow_run_id: str,
        asked_by: str,
        held: contextlib.ExitStack,
        runs: contextlib.ExitStack,
    ) -> None:
        self.settings, self.plan, self.flow_run_id = settings, plan, flow_run_id
        self.tracker = self.new_tracker()
        self.registry = open_registry(settings, asked_by)
        self._held, self._runs, self._listeners = held, runs, _LISTENERS.get()
        self._cluster: Cluster | None = None
        self._warm = warm()
        self._handover = self._warm.handover if self._warm else cluster.Handover()
        self._logging: Beside | None = None
        self.lock: Lock | None = None

    def new_tracker(self) -> tracking.Tracker:
        """A client of its own for MLflow's runs of the plan's name."""
        return tracking.Tracker(self.settings.tracking, self.settings.artifacts, self.plan.name)

    def tell(self, event: Event) -> None:
        """Hand an event to those who listened when the session was opened."""
        for listener in self._listeners:
            listener(event)

    def say(self, text: str) -> None:
        """Hand a line of text to the listeners."""
        self.tell(Event(text))

    def start_run(self, key: str, origin: tracking.Origin) -> str:
        """Start the retraining's own MLflow run and return its id; if the session's block fails, the run is ended."""
        run_id = self.tracker.start_retraining(key, origin, self.plan.model_dump(mode="json"))
        self._runs.push(partial(_end_failed, self.tracker, run_id))
        return run_id

    def log_beside(self, work: Callable[[threading.Event], object]) -> None:
        """Log to MLflow beside the next stage, after `start_run`; see `Beside` on `work`. It is waited for if that fails, too."""
        self._logging = Beside(work)
        self._runs.push(self._logging.leave)

    def finish_logging(self) -> None:
        """Wait for what is logged beside, and raise what it raised."""
        if self._logging:
            self._logging.join()

    def cluster(self) -> Cluster:
        """The Ray cluster of the settings, else a local one, started at the first call and ended with the session."""
        if self._cluster is None:
            if self._warm:
                self._warm.join()
            group = self.plan.workers.group()
            opened = open_cluster(
                self.settings.ray_address, self.settings.storage, num_cpus=group.fewest * group.cpus_per_worker, say=self.say
            )
            self._cluster = self._held.enter_context(opened)
            self._held.callback(self._handover.end)
        return self._cluster

    def run_job(self, requested: job.Job) -> job.JobOutcome:
        """Run a job on the cluster and return its outcome.

        A job of the same key that still runs is joined; else the driver of the session's last job takes it. Other running jobs
        of this model name have no owner, since a session holds the name's lock: they are stopped.
        """
        ray = self.cluster()
        if self.lock:
            self.lock.check()
        jobs, mine = job.jobs_root(requested.storage).address, requested.folder
        handed_to = mine.read_submission()
        found = cluster.find_orphans(ray, self.plan.name, jobs, besides=(mine.address, self._handover.folder))
        orphans = [orphan for orphan in found if orphan.submission_id != handed_to]
        for orphan in orphans:
            self.say(f"Stopping {orphan.submission_id}, which a crash left behind")
            cluster.stop(ray, orphan.submission_id)
        submitted: list[str] = []
        try:
            outcome = cluster.run_job(
                ray,
                job.write_job(requested),
                key=requested.key,
                name=self.plan.name,
                flow_run_id=self.flow_run_id,
                on_start=submitted.append,
                say=self.say,
                handover=self._handover,
            )
            if orphans:
                # Not before: a job that runs may end meanwhile.
                self.tracker.end_abandoned()
            return outcome
        except BaseException as error:
            was_interrupted = submitted and not isinstance(error, Exception) and not cluster.death(ray)
            if was_interrupted:  # no job may run on without anyone watching it
                with contextlib.suppress(Exception):
                    cluster.stop(ray, submitted[-1])
            raise


@contextlib.contextmanager
def open_session(
    settings: Settings, plan: Plan, *, flow_run_id: str = "", asked_by: str = "", wait_seconds: float = WAIT_SECONDS
) -> Iterator[RetrainingSession]:
    """A session for the block. A model name has one session at a time: a second one waits for the first.

    The ledger says that `asked_by` asked, by default the user of this process.

    A block that fails leaves no MLflow run that says RUNNING. Raises Unreachable if MLflow does not answer, Busy if the
    first session is not over after `wait_seconds`.
    """
    check_root(settings.root)
    tracking.reach(settings.tracking, settings.artifacts)
    with contextlib.ExitStack() as held, contextlib.ExitStack() as runs:
        session = RetrainingSession(settings, plan, flow_run_id, asked_by, held, runs)
        session.lock = held.enter_context(_alone(session, wait_seconds))
        yield session


def _end_failed(
    tracker: tracking.Tracker, run_id: str, kind: type[BaseException] | None, error: BaseException | None, _: object
) -> None:
    if kind is not None:
        with contextlib.suppress(Exception):  # the block's own error is the one to raise
            tracker.close_retraining(run_id, "FAILED" if issubclass(kind, Exception) else "KILLED")


def open_registry(settings: Settings, asked_by: str = "") -> Registry:
    """The model registry of these settings, whose ledger says that `asked_by` asked, by default the user of this process.

    Raises AskedWrongly if they name no registry and the folder is no workspace, Unreachable if MLflow does not answer.
    """
    tracking.reach(settings.tracking, settings.artifacts)
    if settings.tracking_address is None and settings.storage_root is None:
        dataset.open_workspace(settings.workspace)
    ledgers = as_root(open_place(settings.root).within("ledger").address)
    return Registry(settings.tracking, ledgers, asked_by or user_name())


def session_locks(settings: Settings) -> Locks:
    """The locks of the model names: a retraining holds its own, with its process in words."""
    return locks_of(open_place(settings.root).within("locks"))


def at_work(settings: Settings, *, besides: str | None = None) -> str | None:
    """The name and process of a retraining that runs on this storage root, other than of model `besides`; None if none."""
    holders = session_locks(settings).holders()
    return next((f"{name}, {holder}" for name, holder in holders.items() if name != besides), None)


@contextlib.contextmanager
def _alone(session: RetrainingSession, wait_seconds: float) -> Iterator[Lock]:
    """Hold the lock of the model name for the block; it dies with its process, which `flows.stages.living_runs` knows by it."""
    name, locks = session.plan.name, session_locks(session.settings)

    def on_wait(holder: str) -> None:
        session.say(f"Waiting for another retraining of {name!r} ({holder})")

    try:
        with locks.hold(name, f"pid {os.getpid()}", wait_seconds=wait_seconds, every_seconds=1.0, on_wait=on_wait) as lock:
            yield lock
    except Held as held:
        raise Busy(
            f"another retraining of {name!r} is at work ({held.holder}); wait until it ends, then run this again"
        ) from None


def stop_retraining(settings: Settings, flow_run_id: str) -> list[str]:
    """Stop the Ray jobs of a flow run, return their ids once Ray confirms, and end its running MLflow runs as KILLED."""
    stopped = []
    try:
        ray = cluster.find_cluster(settings.ray_address, settings.storage)
        if ray is not None:
            for submission in cluster.find_by_flow_run(ray, flow_run_id):
                cluster.stop(ray, submission.submission_id)
                stopped.append(submission.submission_id)
    finally:
        tracking.stop_runs(settings.tracking, flow_run_id)
    return stopped
