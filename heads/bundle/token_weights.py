"""How much each token of a text counts in a model's answer: by the head's own attention, else by gradient times input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from heads.bundle import Bundle
from heads.bundle.sample_inputs import READERS, Preparing, SampleInput
from heads.data.wordpiece import CONTINUED
from heads.tasks.classifiers import AttentionPool

How = Literal["attention", "gradient x input"]


@dataclass(frozen=True)
class WeighedToken:
    """A token as it is written, whether it goes on the word before, and its weight: 1 is that of the heaviest.

    Attention weighs from 0 on; gradient times input is negative where a token speaks against the answer.
    """

    text: str
    continues: bool
    weight: float


@dataclass(frozen=True)
class WeighedText:
    """The tokens of a text that a model reads, its marks of start and end left out, and how they are weighed."""

    how: How
    tokens: tuple[WeighedToken, ...]


def weigh_tokens(bundle: Bundle, sample: SampleInput, target: str) -> WeighedText:
    """The tokens of one text by their weight in the likeliest class or label of a target.

    A head with attention is asked for its weights of tokens; of another, the gradient of the winner's logit is multiplied with
    the embeddings and summed over channels (Simonyan et al., "Deep Inside Convolutional Networks", ICLR workshop 2014, and
    Shrikumar et al., "Not Just a Black Box", 2016). Raises TextError if the text cannot be read.
    """
    vocabulary, model = bundle.vocabulary, bundle.model.eval()
    assert vocabulary, "models of texts have one"
    reader, device = READERS["text"], next(model.parameters()).device
    preparing = Preparing(bundle.preprocess, vocabulary, finds_words=False)
    inputs = reader.collate([reader.open(sample, "text", preparing)], preparing, device)
    assert isinstance(inputs.features, Tensor)
    ids, head = inputs.features, model.heads[model.head_keys[target]]
    pool = next((part for part in head.modules() if isinstance(part, AttentionPool)), None)
    weights = _by_gradient(bundle, ids, target) if pool is None else _by_attention(bundle, ids, target, pool)
    own = weights[1:-1]
    most = float(own.abs().max()) if len(own) else 0.0
    names = [vocabulary.tokens[number] for number in ids[0, 1:-1].tolist()]
    tokens = (
        WeighedToken(name.removeprefix(CONTINUED), name.startswith(CONTINUED), float(weight) / most if most else 0.0)
        for name, weight in zip(names, own, strict=True)
    )
    return WeighedText("gradient x input" if pool is None else "attention", tuple(tokens))


def _by_attention(bundle: Bundle, ids: Tensor, target: str, pool: AttentionPool) -> Tensor:
    model = bundle.model
    with torch.inference_mode():
        (stage,) = model.taps[target]
        weights: Tensor = pool.weigh(model.forward_backbone(ids)[stage][:, 1:])[0].cpu()
    return weights


def _by_gradient(bundle: Bundle, ids: Tensor, target: str) -> Tensor:
    model = bundle.model
    (stage,) = model.taps[target]
    with torch.enable_grad():
        # The mark of tokens is their last channel, and no feature.
        embedded = model.backbone[0](ids).detach().requires_grad_()
        features: Tensor = embedded
        for part in list(model.backbone)[1 : stage + 1]:
            features = part(features)
        head: nn.Module = model.heads[model.head_keys[target]]
        (gradient,) = torch.autograd.grad(head(features)[0].max(), embedded)
    counted: Tensor = (gradient * embedded)[0, :, :-1].sum(dim=-1).detach().cpu()
    return counted
