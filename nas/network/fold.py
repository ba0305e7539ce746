"""Networks as they are run: BatchNorm folded into the convolution in front of it."""

from itertools import pairwise

import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every BatchNorm that stands behind a convolution in a Sequential, and return the model.

    Args:
        model: A network in evaluation mode; it is changed in place, and cannot be trained on.
    """
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                delattr(module, second)
    return model
