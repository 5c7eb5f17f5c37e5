"""Write a bundle as an MLflow model: the exported program that loads with plain MLflow, and the bundle itself beside it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

BUNDLE_FOLDER = "bundle"
# Two images of unlike height and width: the exporter takes sizes that are one or equal for fixed.
EXAMPLE_SHAPE = (2, 40, 56, 3)


def write_model(dest: Path, bundle: Path, *, run_id: str, model_id: str, facts: Mapping[str, Any]) -> None:
    """Make the folder `dest`: MLmodel, data/model.pt2 (uint8 images N,H,W,3 to probabilities N,C) and `bundle/`, no pickle."""
    from heads import bundle as bundles

    write_program(dest, bundles.export_program(bundles.load(bundle)), run_id=run_id, model_id=model_id, facts=facts)
    shutil.copytree(bundle, dest / BUNDLE_FOLDER)


def write_program(dest: Path, program: nn.Module, *, run_id: str, model_id: str, facts: Mapping[str, Any]) -> None:
    """Make the folder `dest` with the program alone, as MLflow keeps exported programs."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.zeros(EXAMPLE_SHAPE, np.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        num_classes = int(program(torch.from_numpy(example)).shape[1])
        # Unnamed: MLflow hands a named input over in a dict, which its own PyTorch flavour then refuses.
        images = TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))
        probabilities = TensorSpec(np.dtype("float32"), (-1, num_classes))
        model = Model(run_id=run_id, model_id=model_id)
        mlflow.pytorch.save_model(
            program,
            dest,
            mlflow_model=model,
            signature=ModelSignature(Schema([images]), Schema([probabilities])),
            input_example=example,
            serialization_format="pt2",
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
            metadata=dict(facts),
        )
    # The program was exported on the CPU and can not move: left alone, MLflow would want it on a GPU where there is one.
    model.flavors["python_function"]["config"] = {"device": "cpu"}
    model.save(dest / "MLmodel")
