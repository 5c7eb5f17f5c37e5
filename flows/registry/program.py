"""Writing a bundle as an MLflow model: the exported program, which loads with plain MLflow, and the bundle beside it."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.errors import HeadstartError
from heads.catalogue import Modality

if TYPE_CHECKING:
    from torch import nn

BUNDLE_FOLDER = "bundle"


@dataclass(frozen=True)
class Signature:
    """What an exported program takes: numbers of `dtype` below `most`, in arrays of a `shape` in which -1 is any length.

    It is exported with an example, filled with one number, and then tried on others.
    """

    dtype: str
    fill: int
    most: int
    shape: tuple[int, ...]
    example: tuple[int, ...]
    trials: tuple[tuple[int, ...], ...]


SIGNATURES: Mapping[Modality, Signature] = {
    # An example is of more than one image, since the exporter takes a size of one as fixed; square, since else it fixes the
    # aspect ratio. Few are tried, since each image runs through the backbone at its full size, twice.
    "image": Signature("uint8", 0, 256, (-1, -1, -1, 3), (2, 32, 32, 3), ((1, 48, 30, 3), (3, 36, 36, 3))),
    # Token ids, of which the first few are of every vocabulary.
    "text": Signature("int64", 1, 5, (-1, -1), (2, 16), ((1, 7), (3, 40))),
}


class Export:
    """A bundle on its way to an MLflow model, in a thread, since it takes seconds in which a flow mostly waits for a cluster."""

    def __init__(self, bundle: Path) -> None:
        # By this thread: two that import torch's compiler at once may each find it half.
        from heads import bundle as _  # noqa: F401

        held = tempfile.mkdtemp(prefix="headstart-export-")
        self._folder = Path(held) / "model"
        # One that is never asked for goes without a word, with this object, which lives as long as its thread.
        self._remove = weakref.finalize(self, shutil.rmtree, held, ignore_errors=True)
        pool = ThreadPoolExecutor(1, thread_name_prefix="export")
        self._written = pool.submit(self._write, bundle)
        pool.shutdown(wait=False)

    def _write(self, bundle: Path) -> None:
        write_model(self._folder, bundle)

    @contextmanager
    def finished(self, *, run_id: str, model_id: str, facts: Mapping[str, Any]) -> Iterator[Path]:
        """The model's folder, as one of this run and id, until the block ends. Raises what `write_model` raises."""
        from mlflow.models import Model

        try:
            self._written.result()
            model = Model.load(str(self._folder))
            model.run_id, model.model_id, model.metadata = run_id, model_id, dict(facts)
            model.save(str(self._folder / "MLmodel"))
            yield self._folder
        finally:
            self._remove()


def load_exporter() -> None:
    """Load what a bundle is exported with, by exporting nothing; else the first `Export` does, and takes two seconds longer."""
    import mlflow.pytorch  # noqa: F401
    import torch
    from torch import nn

    from heads.bundle import program as _  # noqa: F401

    with torch.inference_mode():
        torch.export.export(nn.Identity(), (torch.zeros(2),))


def write_model(dest: Path, bundle: Path) -> None:
    """Make the folder `dest`: MLmodel, data/model.pt2 and `bundle/`, no pickle.

    The program takes uint8 images (N, H, W, 3), or token ids (N, L) of int64, to probabilities (N, C); with masks among the
    targets (N, C, H, W), with tags (N, C, L).
    Raises BundleError on a damaged bundle, HeadstartError if the program answers otherwise than the bundle.
    """
    from heads import bundle as bundles
    from heads.bundle.program import export_program

    loaded = bundles.load(bundle)
    write_program(dest, export_program(loaded), SIGNATURES[loaded.variant.modality])
    shutil.copytree(bundle, dest / BUNDLE_FOLDER)


def write_program(dest: Path, program: nn.Module, signature: Signature = SIGNATURES["image"]) -> None:
    """Make the folder `dest` with the program alone, as MLflow keeps exported programs."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.full(signature.example, signature.fill, signature.dtype)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        answer = program(torch.from_numpy(example))
        # Unnamed: MLflow hands a named input over in a dict, which its own PyTorch flavour then refuses.
        samples = TensorSpec(np.dtype(signature.dtype), signature.shape)
        # The classes stand in the second dimension; every other is as long as the samples: their number, pixels or tokens.
        shape = tuple(size if at == 1 else -1 for at, size in enumerate(answer.shape))
        probabilities = TensorSpec(np.dtype("float32"), shape)
        model = Model()
        mlflow.pytorch.save_model(
            program,
            dest,
            mlflow_model=model,
            signature=ModelSignature(Schema([samples]), Schema([probabilities])),
            input_example=example,
            serialization_format="pt2",
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
        )
    # The program was exported on the CPU and can not move: left alone, MLflow would want it on a GPU where there is one.
    model.flavors["python_function"]["config"] = {"device": "cpu"}
    model.save(dest / "MLmodel")
    _try_out(dest, program, signature)


def _try_out(folder: Path, program: nn.Module, signature: Signature) -> None:
    """Load the model as a consumer does. Raises HeadstartError if on some size it does not answer as the program does."""
    import mlflow.pyfunc
    import numpy as np
    import torch

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        loaded = mlflow.pyfunc.load_model(str(folder))
        for shape in signature.trials:
            samples = np.random.default_rng(0).integers(signature.fill, signature.most, shape, dtype=signature.dtype)
            wanted = program(torch.from_numpy(samples)).numpy()
            try:
                distance = float(np.abs(loaded.predict(samples) - wanted).max())
            except Exception as error:
                raise HeadstartError(f"the exported model does not take a batch of {shape}: {error}") from error
            if not distance < 1e-4:
                raise HeadstartError(
                    f"the exported model is off by {distance:.2g} on a batch of {shape}; at most 0.0001 is right"
                )
