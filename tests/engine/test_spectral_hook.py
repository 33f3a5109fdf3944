from types import SimpleNamespace

import pytest
import torch
from engine_toys import penalised_training, toy_with_random_weights

from iso_d2.engine import OrthogonalityLossHook
from iso_d2.isometry import SpectralPenalty


def test_the_spectral_penalty_enters_the_losses_and_goes_on():
    model = toy_with_random_weights()
    hook = OrthogonalityLossHook(0.1, mode="spectral", bound=0.5, log_period=1)
    result = penalised_training(model, hook)
    fresh = toy_with_random_weights()
    convs = [fresh.get_submodule(name) for name in result["layers"]]
    assert result["written"]["loss_ortho"] == pytest.approx(0.1 * SpectralPenalty(convs, 0.5)().sum().item())
    state = hook.state_dict()
    assert [v.shape[0] for v in state["vectors"]] == [2] * len(
        {tuple(c.weight.shape) + c.stride for c in convs}
    )
    again = OrthogonalityLossHook(0.1, mode="spectral", bound=0.5)
    again.load_state_dict(state)
    again.trainer = SimpleNamespace(model=model)
    again.before_train()
    assert torch.equal(again._spectral(), hook._spectral())
    assert OrthogonalityLossHook(0.1).state_dict() == {}


def test_the_spectral_penalty_refuses_what_it_has_not():
    with pytest.raises(ValueError, match=r"no fraction of frequencies, got 0\.5"):
        OrthogonalityLossHook(0.1, mode="spectral", fraction=0.5)
    with pytest.raises(ValueError, match="bound of singular values"):
        OrthogonalityLossHook(0.1, mode="spectral", bound=0)
