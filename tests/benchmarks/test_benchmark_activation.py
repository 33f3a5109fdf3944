import pytest
import torch
from torch import nn

from benchmarks.activation import forward_and_backward, measure_activation, operators
from benchmarks.options import Options


@pytest.mark.parametrize("channels_last", [False, True])
def test_activation_part_has_a_table_for_each_shape(channels_last):
    tables = measure_activation(Options(batch=1, size=(16, 16), repeats=1, channels_last=channels_last), 0)
    assert len(tables) == (4 if channels_last else 5)
    assert "channels last" in tables[-1].title
    for table in tables:
        rows = {row["operator"]: row for row in table.rows}
        assert "ours over it" not in rows["SReLU"]
        assert rows["batch norm, ReLU in place"]["ours over it"]["median"] > 0


def test_measured_operators_have_autograds_gradients():
    channels = 3
    x, residual = torch.randn(2, 2, channels, 4, 4).unbind()
    alone, summed = operators(channels)
    for operator in (alone["SReLU"], alone["relu(x - b) + b"]):
        with torch.no_grad():
            operator.threshold.copy_(torch.tensor([-1.0, 0.0, 0.5]))
        grad_x, grad_b = forward_and_backward(operator, x.clone())()
        passed = x > operator.threshold.detach().view(-1, 1, 1)
        torch.testing.assert_close(grad_x, passed.float())
        torch.testing.assert_close(grad_b, (~passed).float().sum((0, 2, 3)))
    for operator in summed.values():
        bound = 0.0 if isinstance(operator, type(lambda: 0)) else -1.0
        grads = forward_and_backward(operator, x.clone(), residual.clone())()
        torch.testing.assert_close(grads[0], (x + residual > bound).float())
        torch.testing.assert_close(grads[1], grads[0])


def test_operator_in_place_changes_the_buffer_and_no_copy():
    x = torch.tensor([[-2.0, 3.0]])
    forward_and_backward(nn.ReLU(inplace=True), x)()
    assert x.tolist() == [[0.0, 3.0]]
