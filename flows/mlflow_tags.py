"""The names of the tags that Headstart writes in MLflow, of runs, registered versions and models; a stored name never changes."""

# Of a variant's run, and of the version that was made of it.
WORK_KEY = "headstart.work_key"
VARIANT_ID = "headstart.variant_id"
DATA_VERSION = "headstart.data_version"
GIT_COMMIT = "headstart.git_commit"

# Of runs.
KIND = "headstart.kind"
RETRAINING_KEY = "headstart.retraining"
FLOW_RUN_ID = "headstart.flow_run_id"
DATA_REVISION = "headstart.data_revision"
DATA_SOURCE = "headstart.data_source"
WEIGHTS = "headstart.weights"
COMPLETE = "headstart.complete"
ENDED = "headstart.ended"
COMPILED = "headstart.compiled"
PROMOTED = "headstart.promoted"
BASELINE = "headstart.baseline"
# MLflow's own: it draws these runs and their commit by them.
PARENT_RUN = "mlflow.parentRunId"
SOURCE_COMMIT = "mlflow.source.git.commit"
NOTE = "mlflow.note.content"

# Of registered versions.
RUN_ID = "headstart.run_id"
BUNDLE_DIGEST = "headstart.bundle_digest"
HOLDOUT = "headstart.holdout"
# The measures on the holdout as JSON, in versions of earlier Headstarts.
HOLDOUT_AS_JSON = "headstart.metrics"
VERDICT = "headstart.verdict"
WITHDRAWN = "headstart.withdrawn"
# Of a version that waits for approval, with the id of the ledger's entry that says it is proven.
WAITS = "headstart.waits_for_approval"

# An entry of the ledger, with its id behind: of its version, or of the model, if the work could not be registered.
LEDGER_PREFIX = "headstart.ledger."

# Of registered models: the id of the entry whose aliases are being moved; it is gone once they are.
UNDER_WAY = "headstart.under_way"
# The hash of the description that we gave a model: one that a person wrote has another, and stays.
DESCRIPTION_HASH = "headstart.description"
