"""Networks away from their initialisation."""

import torch


def random_(module, scale=0.3):
    """Move every parameter off the initialisation, at which little could be told apart."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("scale"):
                parameter.fill_(scale)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module
