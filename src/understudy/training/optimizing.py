"""The groups of parameters that the optimizer treats differently."""

from typing import Any

from torch import nn

from understudy.config import OptimizerConfig

_NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(module: nn.Module, options: OptimizerConfig, lr: float) -> list[dict[str, Any]]:
    """Group the trained parameters: the biases have their own learning rate and weight decay if a factor is not 1.

    Biases of normalisation layers count as their other parameters, as in mmdet (``bias_lr_mult``, ``bias_decay_mult``
    of mmengine's ``DefaultOptimWrapperConstructor``, as documented there; its code applies the latter to them, too).

    Args:
        module: the module to train.
        options: the factors.
        lr: learning rate of the other parameters.

    Returns:
        The groups of a torch optimizer, the biases last.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if options.bias_lr_mult == options.bias_decay_mult == 1:
        return [{"params": trained}]
    owners = (owner for owner in module.modules() if not isinstance(owner, _NORMALISATION))
    biases = {id(bias) for owner in owners if (bias := owner._parameters.get("bias")) is not None}
    factors = {"lr": lr * options.bias_lr_mult, "weight_decay": options.weight_decay * options.bias_decay_mult}
    groups = [
        {"params": [parameter for parameter in trained if id(parameter) not in biases]},
        {"params": [parameter for parameter in trained if id(parameter) in biases], **factors},
    ]
    return [group for group in groups if group["params"]]
