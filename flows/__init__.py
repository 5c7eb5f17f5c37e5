"""The pipeline: data versions, plans, a Ray job, MLflow runs, the gate, the registry, and the Prefect flow above them."""
