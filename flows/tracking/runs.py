"""MLflow runs: a parent a retraining, a child a variant, written by the job's driver and filled in by the flow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows import mlflow_tags
from flows.mlflow_connection import asking, connect, every, experiment
from flows.records import Verdict, Work
from flows.tracking.origin import Origin, dataset_input
from flows.tracking.text import (
    as_json,
    end_tags,
    equals,
    flat,
    is_complete,
    measures_of,
    metrics_at,
    now_ms,
    retraining_name,
    safe_name,
    summary,
)
from flows.work_records import EpochRecord, WorkResult, result_json

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

End = Literal["FINISHED", "FAILED", "KILLED"]
# The prefix of measures with a value an epoch; measures without it are those of the model that was kept.
CURVES = "epoch/"
RUNNING = "attributes.status = 'RUNNING'"
# MLflow takes no more than these in one call.
NUM_PARAMS_AT_ONCE, NUM_METRICS_AT_ONCE = 100, 1000


class Tracker:
    """The runs of one experiment (a plan's name); MLflow is not loaded before the first call.

    Every call may be repeated, and changes nothing the second time. Raises Unreachable if a server does not answer, and
    HeadstartError on any other failure of MLflow.
    """

    def __init__(self, address: str, artifacts: Path, name: str) -> None:
        self.address, self.artifacts, self.name = address, artifacts, name

    @cached_property
    def _client(self) -> MlflowClient:
        return connect(self.address)

    @cached_property
    def _experiment(self) -> str:
        return experiment(self._client, self.name, None if self.address.startswith("http") else self.artifacts)

    @asking
    def connect(self) -> str:
        """Connect, make the experiment if there is none, and return its id."""
        return self._experiment

    def _find(self, *conditions: str) -> Iterator[Run]:
        return every(self._client.search_runs, [self._experiment], " and ".join(conditions))

    def _run_tagged(self, tag: str, value: str) -> Run | None:
        return next(self._find(equals(tag, value)), None)

    def _open(self, existing: Run | None, name: str, tags: Mapping[str, str]) -> str:
        """Make a run with these tags, or let the one found run again with them; its id."""
        if existing is None:
            return str(self._client.create_run(self._experiment, start_time=now_ms(), run_name=name, tags=dict(tags)).info.run_id)
        run_id = str(existing.info.run_id)
        for key, value in tags.items():
            if existing.data.tags.get(key) != value:
                self._client.set_tag(run_id, key, value)
        if existing.info.status in ("KILLED", "FAILED"):
            self._client.update_run(run_id, status="RUNNING")
        return run_id

    @asking
    def start_retraining(self, key: str, origin: Origin, plan: Mapping[str, Any] | None = None) -> str:
        """Start the parent run of the retraining `key`, or go on with the one that exists; its id."""
        existing = self._run_tagged(mlflow_tags.RETRAINING_KEY, key)
        tags = origin.tags | {mlflow_tags.KIND: "retraining", mlflow_tags.RETRAINING_KEY: key}
        run_id = self._open(existing, retraining_name(self.name, origin.data_version), tags)
        self._log_params(run_id, existing, flat(plan or {}))
        self._log_data(run_id, origin)
        return run_id

    @asking
    def start_variant(self, parent: str, work: Work, origin: Origin) -> str:
        """Start the child run of a variant's work, or go on with the one that exists; its id. A complete run stays as it is."""
        existing = self._run_tagged(mlflow_tags.WORK_KEY, work.key)
        if existing is not None and is_complete(existing):
            return str(existing.info.run_id)
        variant = work.variant
        tags = origin.tags | {
            mlflow_tags.PARENT_RUN: parent,
            mlflow_tags.KIND: "variant",
            mlflow_tags.WORK_KEY: work.key,
            mlflow_tags.VARIANT_ID: variant.variant_id,
            mlflow_tags.WEIGHTS: work.weights.digest,
        }
        designs = "+".join(dict.fromkeys(head.design for head in variant.heads))
        run_id = self._open(existing, f"{variant.backbone} {designs} {variant.freeze} {variant.variant_id[:6]}", tags)
        spec = variant.model_dump(mode="json", exclude={"heads"})
        spec["heads"] = {head.target: {"task": head.task, "design": head.design} for head in variant.heads}
        self._log_params(run_id, existing, flat(spec) | {"weights": work.weights.digest})
        self._log_data(run_id, origin)
        return run_id

    def _log_params(self, run_id: str, existing: Run | None, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        known = existing.data.params if existing else {}
        missing = [Param(key, value) for key, value in params.items() if key not in known]
        for first in range(0, len(missing), NUM_PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=missing[first : first + NUM_PARAMS_AT_ONCE])

    def _log_data(self, run_id: str, origin: Origin) -> None:
        self._client.log_inputs(run_id, [dataset_input(self.name, origin)])

    @asking
    def log_epochs(self, run_id: str, epochs: Iterable[EpochRecord]) -> None:
        """Log the epochs that the run does not hold yet, one step an epoch, under `epoch/<measure>`."""
        last = self._client.get_run(run_id).data.metrics.get("epoch", -1)
        metrics: list[Metric] = []
        for epoch in epochs:
            if epoch.epoch > last:
                frozen = {} if epoch.num_frozen_stages is None else {"num_frozen_stages": epoch.num_frozen_stages}
                about = {"phase": epoch.phase, "epoch_seconds": epoch.seconds, **frozen}
                # The epoch's number comes last: once that is logged, so is all the rest.
                curves = {CURVES + name: value for name, value in epoch.metrics.items()}
                metrics += metrics_at({**curves, **about, "epoch": epoch.epoch}, epoch.epoch)
        self._log_metrics(run_id, metrics)

    def _log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for first in range(0, len(metrics), NUM_METRICS_AT_ONCE):
            self._client.log_batch(run_id, metrics=metrics[first : first + NUM_METRICS_AT_ONCE])

    @asking
    def finish_variant(self, run_id: str, result: WorkResult, bundle: Path, pictures: Mapping[str, bytes]) -> None:
        """Log a result with its pictures and its bundle, mark the run complete, and end it.

        The measures of the kept model, that of the best epoch, are logged apart from the curves by epoch, as one value each:
        MLflow's table of runs shows them and sorts by them.
        """
        run = self._client.get_run(run_id)
        if not is_complete(run):
            # A run of an earlier version has its curves under the same names, of which MLflow shows the last step.
            begun_before = any(safe_name(name) in run.data.metrics for name in result.metrics)
            best = None if begun_before else result.best_epoch
            self._log_metrics(run_id, metrics_at(measures_of(result), len(result.epochs) if best is None else best))
            self._log_files(run_id, {"result.json": as_json(result_json(result))}, "")
            self._log_files(run_id, pictures, "pictures")
            self._client.log_artifacts(run_id, str(bundle), "bundle")
            for name, words in end_tags(result).items():
                self._client.set_tag(run_id, name, words)
            self._client.set_tag(run_id, mlflow_tags.COMPLETE, "true")
        if run.info.status != "FINISHED":
            self._client.set_terminated(run_id, "FINISHED")

    @asking
    def fail_variant(self, run_id: str, reason: str) -> None:
        """End a run as FAILED, with the reason as its note, and mark it complete: it failed for good."""
        self._client.set_tag(run_id, mlflow_tags.NOTE, f"Failed: {reason}"[:5000])
        self._client.set_terminated(run_id, "FAILED")
        self._client.set_tag(run_id, mlflow_tags.COMPLETE, "true")

    def _log_files(self, run_id: str, files: Mapping[str, bytes], folder: str) -> None:
        with tempfile.TemporaryDirectory() as made:
            for name, content in files.items():
                (Path(made) / name).write_bytes(content)
            self._client.log_artifacts(run_id, made, folder or None)

    @asking
    def find_complete(self, work_key: str) -> str | None:
        """The id of a work's child run if it is complete and ended, or None."""
        run = self._run_tagged(mlflow_tags.WORK_KEY, work_key)
        whole = run is not None and is_complete(run) and run.info.status in ("FINISHED", "FAILED")
        return str(run.info.run_id) if run and whole else None

    @asking
    def close_retraining(
        self,
        parent: str,
        end: End,
        *,
        leaderboard: Sequence[Mapping[str, Any]] = (),
        verdict: Verdict | None = None,
        metrics: Mapping[str, float] | None = None,
        pictures: Mapping[str, bytes] | None = None,
        baseline: str = "",
    ) -> None:
        """End the parent run and its children that still run; log leaderboard, verdict, measures and pictures, and a note.

        `baseline` names the plain model whose measures are among them.
        """
        files, note = summary(leaderboard, verdict)
        if files:
            self._log_files(parent, files, "")
            self._client.set_tag(parent, mlflow_tags.NOTE, note[:5000])
        if verdict is not None:
            self._client.set_tag(parent, mlflow_tags.PROMOTED, str(verdict.promoted).lower())
        if baseline:
            self._client.set_tag(parent, mlflow_tags.BASELINE, baseline)
        if pictures:
            self._log_files(parent, pictures, "pictures")
        self._log_metrics(parent, metrics_at(metrics or {}, 0))
        self._terminate(parent, end)

    def _terminate(self, parent: str, end: End) -> None:
        unfinished: End = "KILLED" if end == "KILLED" else "FAILED"
        for child in list(self._find(equals(mlflow_tags.PARENT_RUN, parent), RUNNING)):
            self._client.set_terminated(child.info.run_id, "FINISHED" if is_complete(child) else unfinished)
        self._client.set_terminated(parent, end)

    @asking
    def repair(self) -> tuple[str, ...]:
        """Set all runs that say RUNNING to KILLED; the parents' ids. The caller must hold the name's lock."""
        killed = self._kill(equals(mlflow_tags.KIND, "retraining"), RUNNING)
        self.end_abandoned()
        return killed

    @asking
    def end_abandoned(self) -> None:
        """End variants' runs that say RUNNING while their parent does not: a job that outlived its flow opened them again."""
        at_work = {run.info.run_id for run in self._find(equals(mlflow_tags.KIND, "retraining"), RUNNING)}
        for child in list(self._find(equals(mlflow_tags.KIND, "variant"), RUNNING)):
            if child.data.tags.get(mlflow_tags.PARENT_RUN) not in at_work:
                self._client.set_terminated(child.info.run_id, "FINISHED" if is_complete(child) else "KILLED")

    @asking
    def stop_runs(self, flow_run_id: str) -> tuple[str, ...]:
        """Set the running parent runs of a flow run, and their children, to KILLED; their ids."""
        return self._kill(equals(mlflow_tags.FLOW_RUN_ID, flow_run_id), equals(mlflow_tags.KIND, "retraining"), RUNNING)

    def _kill(self, *conditions: str) -> tuple[str, ...]:
        run_ids = tuple(str(run.info.run_id) for run in self._find(*conditions))
        for run_id in run_ids:
            self._terminate(run_id, "KILLED")
        return run_ids

    @asking
    def experiments(self) -> tuple[str, ...]:
        """The names of all experiments at this address."""
        return tuple(known.name for known in self._client.search_experiments())
