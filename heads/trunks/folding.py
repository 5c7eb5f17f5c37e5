"""BatchNorm folded into convolutions: frozen stages that give the same features with fewer passes over a GPU's memory.

A BatchNorm whose statistics stand still only scales and shifts each channel, as the weights and the bias of the convolution
before it can. torch adds a bias in a pass of its own, as long as the BatchNorm's, but for a convolution with a ReLU behind it:
of these cuDNN does all at once, and the sum with what a residual block adds.
"""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

# What a GPU reads at once: cuDNN has its joint kernels for channels that fill such blocks.
ALIGNED_BYTES = 16
SUMS = operator.add, operator.iadd, torch.add


def fold(stages: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Stages that share what they can with the given ones, which stay as they are: these themselves if nothing can be folded.

    `dtype` is what they are computed in. In half precision only a convolution before a ReLU is folded: other biases would be
    rounded before they are added, and the sums once more. What trains, and what decides by its values, is left as it is.
    """
    with torch.no_grad():
        folded = OrderedDict((name, _fold_stage(stage, dtype)) for name, stage in stages.named_children())
    return nn.Sequential(folded) if any(stage is not folded[name] for name, stage in stages.named_children()) else stages


def _fold_stage(stage: nn.Module, dtype: torch.dtype) -> nn.Module:
    if not _has_batch_norm(stage) or any(part.training for part in stage.modules()):
        return stage
    try:
        graph = _Tracer().trace(stage)
    except (fx.proxy.TraceError, TypeError, RuntimeError):
        return stage
    # Holds the parts that the graph calls, not copies of them; those that change are replaced in it alone.
    folded = fx.GraphModule(stage, graph)
    is_changed = [_fold_pair(folded, convolution, norm, dtype) for convolution, norm in list(_pairs(folded, graph))]
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded.eval() if any(is_changed) else stage


def _pairs(stage: nn.Module, graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The calls of a convolution and of the BatchNorm that alone reads what it gives."""
    num_calls = Counter(node.target for node in graph.nodes)
    for norm in graph.nodes:
        if not _calls(stage, norm, nn.BatchNorm2d) or stage.get_submodule(norm.target).running_var is None:
            continue
        (convolution,) = norm.all_input_nodes
        is_alone = len(convolution.users) == 1 and num_calls[convolution.target] == 1
        if is_alone and _calls(stage, convolution, nn.Conv2d) and _pads_with_zeros(stage, convolution):
            yield convolution, norm


def _fold_pair(stage: fx.GraphModule, convolution: fx.Node, norm: fx.Node, dtype: torch.dtype) -> bool:
    """Whether the pair was folded, in the stage's graph."""
    name = str(convolution.target)
    layer, own_norm = stage.get_submodule(name), stage.get_submodule(str(norm.target))
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(own_norm, nn.BatchNorm2d)
    relu, added = _relu_behind(stage, norm) if _is_aligned(layer, dtype) else (None, None)
    if relu is None and dtype != torch.float32:
        return False
    stage.set_submodule(name, _FoldedConvolution(layer, own_norm, dtype, is_rectified=relu is not None))
    last, graph = relu or norm, stage.graph
    with graph.inserting_before(last):
        at_once = graph.call_module(name, (convolution.args[0], *((added,) if added else ())))
    last.replace_all_uses_with(at_once)
    for node in (relu, relu.args[0] if relu and added else None, norm, convolution):
        if isinstance(node, fx.Node):
            graph.erase_node(node)
    return True


def _relu_behind(stage: nn.Module, norm: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The ReLU that alone reads what a BatchNorm gives, or its sum with what is added; and that, if anything is."""
    if len(norm.users) != 1:
        return None, None
    (reader,) = norm.users
    if _is_relu(stage, reader):
        return reader, None
    if reader.target not in SUMS or len(reader.users) != 1 or reader.kwargs or reader.args[0] is reader.args[1]:
        return None, None
    (relu,), added = reader.users, reader.args[reader.args[0] is norm]
    # In the other order, the sum is written over what is added.
    is_new = reader.target is not operator.iadd or reader.args[0] is norm
    return (relu, added) if is_new and isinstance(added, fx.Node) and _is_relu(stage, relu) else (None, None)


def _is_relu(stage: nn.Module, node: fx.Node) -> bool:
    return _calls(stage, node, nn.ReLU) or (node.op == "call_function" and node.target in (F.relu, torch.relu))


def _calls(stage: nn.Module, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and type(stage.get_submodule(str(node.target))) is kind


def _is_aligned(layer: nn.Conv2d, dtype: torch.dtype) -> bool:
    sides = layer.in_channels, layer.out_channels
    return layer.groups == 1 and all(channels * dtype.itemsize % ALIGNED_BYTES == 0 for channels in sides)


def _pads_with_zeros(stage: nn.Module, convolution: fx.Node) -> bool:
    layer = stage.get_submodule(str(convolution.target))
    return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _has_batch_norm(part: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in part.modules())


class _Tracer(fx.Tracer):
    """Looks only into what holds a BatchNorm: the rest may do what cannot be told before it runs."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is called as a whole."""
        return isinstance(m, nn.BatchNorm2d) or not _has_batch_norm(m)


class _FoldedConvolution(nn.Module):
    """A convolution with the BatchNorm behind it; if rectified, with a ReLU too, before it the sum with what is added, if
    anything is: on a GPU all at once."""

    def __init__(self, layer: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype, *, is_rectified: bool) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        statistics = norm.running_mean, norm.running_var, norm.eps
        weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, norm.weight, norm.bias)
        self.weight, self.bias = (nn.Parameter(tensor.to(dtype), requires_grad=False) for tensor in (weight, bias))
        assert not isinstance(layer.padding, str)
        self._places = layer.stride, layer.padding, layer.dilation, layer.groups
        self._is_rectified = is_rectified

    def forward(self, features: Tensor, added: Tensor | None = None) -> Tensor:
        # Autocast does not know of cuDNN's joint kernels.
        features = features.to(self.weight.dtype)
        if not self._is_rectified or not features.is_cuda:
            made = F.conv2d(features, self.weight, self.bias, *self._places)
            made = made if added is None else made + added
            return F.relu(made) if self._is_rectified else made
        if added is None:
            return torch.cudnn_convolution_relu(features, self.weight, self.bias, *self._places)
        return torch.cudnn_convolution_add_relu(features, self.weight, added.to(self.weight.dtype), 1, self.bias, *self._places)
