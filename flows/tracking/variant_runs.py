"""Log the works' files on disk to MLflow: while they train, and at the end whatever is missing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import thread_time

from flows.errors import HeadstartError
from flows.mlflow_connection import check
from flows.places import Place
from flows.records import Work
from flows.tracking.origin import Origin
from flows.tracking.runs import Tracker
from flows.work_folder import WorkFolder
from flows.work_records import WorkResult

LOG = logging.getLogger(__name__)
LONGEST_PAUSE_SECONDS = 60.0
# It rests nine times as long as it works: about a tenth of a core, as the training may have only a few.
RESTS = 9.0

Draw = Callable[[WorkResult], Mapping[str, bytes]]
Stamps = Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class VariantRuns:
    """The MLflow runs of works, below one parent run, written from the works' folders in `root`.

    `draw`, where a method takes it, turns a result into pictures, by file name.
    """

    tracker: Tracker
    parent: str
    works: Sequence[Work]
    root: Place
    origin: Origin

    def start(self) -> dict[str, str]:
        """Start the runs of the works that have begun, where MLflow lacks them; their ids, by work key.

        Raises Unreachable if MLflow does not answer, HeadstartError if it fails.
        """
        check(self.tracker.address)
        begun = [work for work in self.works if self._folder(work).stamp()]
        return {work.key: self.tracker.start_variant(self.parent, work, self.origin) for work in begun}

    def fill_in(self, draw: Draw, stop: threading.Event | None = None) -> dict[str, str]:
        """Log to MLflow what it lacks of the works' files on disk; the run ids of the works that have begun, by work key.

        It ends before the next work once `stop` is set. Raises Unreachable if MLflow does not answer, HeadstartError if it fails.
        """
        check(self.tracker.address)
        runs: dict[str, str] = {}
        for work in self.works:
            if stop and stop.is_set():
                break
            if self._folder(work).stamp():
                runs[work.key] = self._log(work, draw)[0]
        return runs

    def follow(self, draw: Draw, stop: threading.Event, every_seconds: float = 1.0, read_stamps: Stamps | None = None) -> None:
        """Log the works' runs as they begin, finish epochs and end, until `stop` is set or every work is logged.

        Meant for a thread beside the training, to which it leaves most of the processor. Errors of MLflow are logged and tried
        again, never raised. `read_stamps` gives a stamp of each work that has begun, by its key, which changes whenever there is
        more of it; by default their folders are asked, one by one.
        """
        seen, done = dict[str, str](), set[str]()
        read_stamps = read_stamps or (
            lambda: {work.key: self._folder(work).stamp() for work in self.works if work.key not in done}
        )
        failures = 0
        while len(done) < len(self.works) and not stop.is_set():
            try:
                # At once, before the training begins: the first use of MLflow takes seconds of processor time.
                self.tracker.connect()
                stamps = read_stamps()
                for work in self.works:
                    stamp = stamps.get(work.key, "")
                    if work.key in done or stamp == seen.get(work.key, ""):
                        continue
                    if stop.is_set():
                        return
                    start = thread_time()
                    if self._log(work, draw)[1]:
                        done.add(work.key)
                    seen[work.key] = stamp
                    stop.wait(min(RESTS * (thread_time() - start), LONGEST_PAUSE_SECONDS))
                failures = 0
            except Exception as error:  # the training beside this thread must go on, whatever MLflow does
                failures += 1
                LOG.warning("a run is not logged now, the training goes on and what is missing is filled in later: %s", error)
            stop.wait(min(every_seconds * 2**failures, LONGEST_PAUSE_SECONDS))

    def _folder(self, work: Work) -> WorkFolder:
        return WorkFolder(self.root.within(work.key))

    def _log(self, work: Work, draw: Draw) -> tuple[str, bool]:
        """Log what the work's run lacks; its run id, and whether the run is complete now."""
        if complete := self.tracker.find_complete(work.key):
            return complete, True
        run_id, folder = self.tracker.start_variant(self.parent, work, self.origin), self._folder(work)
        if failure := folder.read_failure():
            self.tracker.log_epochs(run_id, failure.epochs)
            self.tracker.fail_variant(run_id, failure.reason)
            return run_id, True
        result = folder.read_result()
        if result is None:
            self.tracker.log_epochs(run_id, folder.read_progress())
            return run_id, False
        self.tracker.log_epochs(run_id, result.epochs)
        bundle = folder.fetch_bundle()
        if bundle is None:
            raise HeadstartError(f"{folder.place.address} has a result and no bundle: remove it, and retrain")
        self.tracker.finish_variant(run_id, result, bundle, draw(result))
        return run_id, True
