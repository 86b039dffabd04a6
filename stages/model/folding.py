"""Batch normalisation folded into the convolution before it, for models that only look."""

from typing import TypeGuard

from timm.layers.norm_act import BatchNormAct2d
from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval


def fold_batch_norm(tower: nn.Module) -> int:
    """Make one convolution of each convolution and the batch normalisation that alone reads it, in place; return how many.

    In evaluation mode a batch normalisation is an affine map of each channel, so that the outputs stay the same but for rounding
    and a pass over the activations is saved. Those of blocks are the same, too. A convolution that something else reads as well, one
    that computes its weights anew each time, and a tower that cannot be followed are left as they are.

    Args:
        tower: in evaluation mode; it cannot be trained as before afterwards.
    """
    if not _normalises(tower):
        return 0
    try:
        graph = _Tracer().trace(tower)
    except Exception:  # towers are anybody's code, and what tracing raises is not defined
        return 0
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    folded = 0
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        names = str(before.target), str(node.target)
        conv, norm = (tower.get_submodule(name) for name in names)
        if not _is_map(norm) or type(conv) is not nn.Conv2d or any(called.count(name) > 1 for name in names):
            continue
        tower.set_submodule(names[0], fuse_conv_bn_eval(conv, norm))
        tower.set_submodule(names[1], getattr(norm, "act", nn.Identity()))
        folded += 1
    return folded


def _is_map(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module is torch's batch normalisation, or timm's with an activation behind it, by statistics that it has stored."""
    return type(norm) in (nn.BatchNorm2d, BatchNormAct2d) and norm.running_mean is not None


class _Tracer(fx.Tracer):
    """Looks at what has no batch normalisation within as a whole: attention, for one, cannot be followed."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.modules.batchnorm._BatchNorm) or not _normalises(m)


def _normalises(module: nn.Module) -> bool:
    return any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in module.modules())
