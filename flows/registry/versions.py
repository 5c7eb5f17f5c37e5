"""Registering versions, moving aliases, and keeping the ledger of why."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from flows.errors import AskedWrongly, HeadstartError
from flows.mlflow_connection import asking
from flows.records import ModelVersion, Verdict
from flows.registry import ledger, program, telling
from flows.registry.catalog import BUNDLE_TAG, Catalog
from flows.registry.ledger import Entry

LEDGER_TAG = "headstart.ledger."


class Registry(Catalog):
    """The registry, to read and to change; `ledger_folder` keeps a copy of each model's ledger as a file.

    Every call may be repeated after a crash, and then finishes what is left. Raises as Catalog does.
    """

    def __init__(self, address: str, ledger_folder: Path) -> None:
        super().__init__(address)
        self.ledger_folder = ledger_folder

    @asking
    def register(
        self,
        name: str,
        *,
        bundle: Path,
        run_id: str,
        work_key: str,
        variant_id: str,
        data_version: str,
        git_commit: str,
        metrics: Mapping[str, float],
    ) -> ModelVersion:
        """Register a work's bundle as a version, or find the one registered before; a new one appears whole or not at all."""
        for version in self.versions(name):
            if version.tags.get("headstart.work_key") == work_key:
                return version
        marks = {
            "headstart.work_key": work_key,
            "headstart.variant_id": variant_id,
            "headstart.data_version": data_version,
            "headstart.run_id": run_id,
            "headstart.git_commit": git_commit,
        }
        model_id = self._logged_model(name, bundle, run_id, marks)
        try:
            self._client.create_registered_model(name, description=telling.UNPROMOTED)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = marks | {telling.HOLDOUT: telling.holdout_tag(metrics), BUNDLE_TAG: _bundle_digest(bundle)}
        description = telling.describe_version((bundle / "card.md").read_text(encoding="utf-8"), metrics)
        made = self._client.create_model_version(
            name, source=f"models:/{model_id}", run_id=run_id, tags=tags, description=description, model_id=model_id
        )
        return self.find(name, str(made.version))

    def _logged_model(self, name: str, bundle: Path, run_id: str, marks: Mapping[str, str]) -> str:
        """The id of the work's logged model in MLflow: one that an earlier try finished, or a new one."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        experiment = self._client.get_run(run_id).info.experiment_id
        known = self._client.search_logged_models([experiment], f"tags.`headstart.work_key` = '{marks['headstart.work_key']}'")
        for model in known:
            if model.status == LoggedModelStatus.READY:
                return str(model.model_id)
        model = self._client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=dict(marks))
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "model"
            program.write_model(folder, bundle, run_id=run_id, model_id=model.model_id, facts=marks)
            self._client.log_model_artifacts(model.model_id, str(folder))
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return str(model.model_id)

    @asking
    def record(self, name: str, version: str, verdict: Verdict) -> Entry:
        """Write a verdict on a version into the ledger, as the version's tags and as a line of the file, once; its entry."""
        judged, champion = self.find(name, version), self._aliases(name).get("champion")
        entry = _entry("verdict", judged, verdict, champion, judged.version if verdict.promoted else champion)
        self._keep(entry)
        self._client.set_model_version_tag(name, judged.version, telling.VERDICT, telling.verdict_tag(verdict))
        return entry

    def _keep(self, entry: Entry) -> None:
        tag = LEDGER_TAG + entry.id
        if tag not in self.find(entry.name, entry.version).tags:
            self._client.set_model_version_tag(entry.name, entry.version, tag, entry.to_text(telling.TAG_CHARS))
        ledger.append(self._ledger_file(entry.name), entry)

    def _ledger_file(self, name: str) -> Path:
        return self.ledger_folder / f"{name}.jsonl"

    def history(self, name: str) -> tuple[Entry, ...]:
        """Every verdict on a model and every rollback, oldest first, from the versions' tags and the file together."""
        versions = self.versions(name)
        written = ledger.read(self._ledger_file(name))
        if not versions and not written:
            self.find(name, "champion")
        tagged = [Entry.from_text(value) for v in versions for tag, value in v.tags.items() if tag.startswith(LEDGER_TAG)]
        return ledger.merge([*tagged, *written])

    @asking
    def promote(self, name: str, version: str, verdict: Verdict) -> ModelVersion:
        """Make the version the champion, and the champion before it `previous`; the verdict goes to the ledger first.

        Raises AskedWrongly if the verdict is not to promote, HeadstartError if another process moved the aliases meanwhile.
        """
        if not verdict.promoted:
            raise AskedWrongly(f"version {version} of {name} can not become champion: its verdict is not to promote it")
        judged = self.find(name, version)
        before = self._aliases(name)
        champion = before.get("champion")
        if champion != judged.version:
            self.record(name, judged.version, verdict)
            self._move(name, {"previous": champion} if champion else {})
        self._move(name, {"challenger": None} if before.get("challenger") == judged.version else {})
        self._move(name, {"champion": judged.version})
        self._describe(name, judged.version)
        return self.find(name, judged.version)

    def _describe(self, name: str, champion: str) -> None:
        """Make the champion's description the model's, unless a person wrote that."""
        model = self._client.get_registered_model(name)
        if telling.is_ours(model.description, model.tags):
            version = self._client.get_model_version(name, champion)
            text = telling.describe_model(champion, version.description or "")
            self._client.set_registered_model_tag(name, telling.DESCRIBED, telling.hash_of(text))
            self._client.update_registered_model(name, text)

    @asking
    def set_challenger(self, name: str, version: str) -> ModelVersion:
        """Make the version the challenger: registered and judged, not promoted."""
        self._move(name, {"challenger": self.find(name, version).version})
        return self.find(name, version)

    def _move(self, name: str, moves: Mapping[str, str | None]) -> None:
        """Point each alias at its version, or nowhere, and read them again to be sure: MLflow has no compare-and-set."""
        for alias, version in moves.items():
            if version is None:
                self._client.delete_registered_model_alias(name, alias)
            else:
                self._client.set_registered_model_alias(name, alias, version)
        aliases = self._aliases(name)
        if wrong := {alias: aliases.get(alias) for alias, version in moves.items() if aliases.get(alias) != version}:
            raise HeadstartError(f"another process moved the aliases of {name} just now: wanted {dict(moves)}, found {wrong}")

    @asking
    def rollback(self, name: str, to: str | None = None, reason: str = "") -> ModelVersion:
        """Make the previous champion, or the earlier champion `to`, the champion again; the ledger keeps the `reason`.

        The version taken back is tagged withdrawn, and never promoted again. Raises AskedWrongly if there is no previous
        champion, or `to` is none that may come back.
        """
        champion, previous = self.find(name, "champion"), self.current(name).get("previous")
        if previous == champion:  # an earlier promotion or rollback was cut short before its last step
            self._move(name, {"previous": self._champion_before(name, champion.version)})
            if self.history(name)[-1].kind == "rollback" and to in (None, champion.version):
                return self.find(name, "champion")
            previous = self.current(name).get("previous")
        if to is not None:
            previous = self._former_champion(name, to, champion.version)
        if previous is None:
            raise AskedWrongly(f"{name} has no previous champion to go back to; version {champion.version} stays champion")
        why = f": {reason}" if reason else ""
        reasons = (f"version {champion.version} was taken back by hand{why}; version {previous.version} is champion again",)
        entry = _entry("rollback", champion, Verdict(False, reasons), champion.version, previous.version)
        self._keep(entry)
        self._client.set_model_version_tag(name, champion.version, "headstart.withdrawn", "true")
        # Cut short after this, the next rollback goes to the same version.
        self._move(name, {"previous": previous.version})
        self._move(name, {"champion": previous.version})
        self._describe(name, previous.version)
        self._move(name, {"previous": self._champion_before(name, previous.version)})
        return self.find(name, "champion")

    def _former_champion(self, name: str, version: str, champion: str) -> ModelVersion:
        """The version, if it was champion before and was not taken back. Raises AskedWrongly, with those that may come back."""
        once = {entry.champion_after for entry in self.history(name)} - {champion}
        allowed = [v for v in self.versions(name) if v.version in once and v.tags.get("headstart.withdrawn") != "true"]
        for former in allowed:
            if former.version == version:
                return former
        names = ", ".join(v.version for v in allowed) or "none"
        raise AskedWrongly(
            f"version {version} of {name} is no earlier champion that may come back (one taken back may not); allowed: {names}"
        )

    def _champion_before(self, name: str, version: str) -> str | None:
        """The champion that the version replaced when it was promoted; None if that was withdrawn since."""
        usable = {v.version for v in self.versions(name) if v.tags.get("headstart.withdrawn") != "true"}
        promotions = [e for e in self.history(name) if e.promoted and e.version == version and e.champion_before in usable]
        return promotions[-1].champion_before if promotions else None


def _entry(kind: str, judged: ModelVersion, verdict: Verdict, before: str | None, after: str | None) -> Entry:
    return Entry(
        kind=kind,
        name=judged.name,
        version=judged.version,
        time=time.time(),
        promoted=verdict.promoted,
        reasons=tuple(verdict.reasons),
        champion_before=before,
        champion_after=after,
        data_version=judged.tags.get("headstart.data_version", ""),
        variant_id=judged.tags.get("headstart.variant_id", ""),
        work_key=judged.tags.get("headstart.work_key", ""),
        figures=dict(verdict.figures),
        findings=verdict.findings,
        metric=verdict.metric,
        recipe=verdict.recipe,
    )


def _bundle_digest(bundle: Path) -> str:
    from heads import bundle as bundles

    return bundles.digest(bundle)
