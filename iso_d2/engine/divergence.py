"""What to say when a training has diverged."""

import itertools

import torch

from ..isometry.model import unwrap


def advice(trainer, batch, error):
    """str: what diverged and what to do, of a trainer whose step ended in an error; `batch`: of diagnosis."""
    amp, checkpointer = trainer.cfg.SOLVER.AMP, trainer.checkpointer
    dtype = torch.bfloat16 if amp.PRECISION == "bf16" else torch.float16
    device = next(trainer.model.parameters()).device.type
    with torch.autocast(device, dtype=dtype, enabled=amp.ENABLED):
        found = diagnosis(unwrap(trainer.model), batch)
    try:
        last = f"with --resume from {checkpointer.get_checkpoint_file()}, the last good checkpoint"
    except ValueError:
        last = "from the start, since there is no checkpoint yet"
    return (
        f"The training diverged at iteration {trainer.iter}: {found}. Lower SOLVER.BASE_LR (it is "
        f"{trainer.cfg.SOLVER.BASE_LR}), warm up longer (SOLVER.WARMUP_ITERS) or clip the gradients "
        f"(SOLVER.CLIP_GRADIENTS), and go on {last}. What was seen first: {error}"
    )


def diagnosis(model, batch):
    """Where a model gets values that are not finite, by one more forward and backward pass.

    Args:
        model (nn.Module): in training mode; its gradients are overwritten, its buffers may change.
        batch: what it took in the step that diverged; None: look at the weights alone.

    Returns:
        str: weights that are not finite, or else the first module, in the order of computation, whose output
        is not, or else the first weight, from the loss backwards, whose gradient is not; and which losses
        are not.
    """
    ruined = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if ruined:
        return f"{len(ruined)} weights are not finite, the first is {ruined[0]}"
    if batch is None:
        return "the weights are finite"
    found, handles = [], []

    def note(name):
        def look(_module, _inputs, output):
            if not found and not all(t.isfinite().all() for t in _float_tensors(output)):
                found.append(f"the first output that is not finite is that of {name or type(model).__name__}")

        return look

    def note_gradient(name):
        def look(weight):
            if not found and not weight.grad.isfinite().all():
                found.append(f"the first gradient that is not finite is that of {name}")

        return look

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(note(name)))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            handles.append(weight.register_post_accumulate_grad_hook(note_gradient(name)))
    broken = []
    try:
        losses = model(batch)
        losses = {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses
        broken = [f"{name} = {loss.item()}" for name, loss in losses.items() if not loss.isfinite().all()]
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
    except FloatingPointError as error:
        broken.append(str(error))  # Detectron2 checks proposals itself
    finally:
        for handle in handles:
            handle.remove()
    return "; ".join([*broken, *found]) or "computed once more, everything is finite"


def _float_tensors(output):
    """The floating-point tensors in a module's output: tensors, and lists, tuples and dicts of them."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    items = (
        output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    )
    return itertools.chain.from_iterable(map(_float_tensors, items))


class Remembering:
    """An iterator that keeps what it gave last."""

    def __init__(self, iterable):
        self._items, self.last = iter(iterable), None

    def __iter__(self):
        return self

    def __next__(self):
        self.last = next(self._items)
        return self.last
