"""What a step would take on GPUs, from counted work and assumed rates. Nothing is measured here."""

from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

from .launches import CountLaunches


@dataclass(frozen=True)
class Machine:
    """Rates of a GPU, its links and the process that feeds it; all are assumptions."""

    name: str
    half: float  # operations a second of matrix products in bf16 or fp16, dense
    single: float  # the same in float32
    memory: float  # bytes a second
    reached: float  # the share of these three that kernels reach
    launch: float  # seconds of CPU time an operator
    link: float  # bytes a second from one GPU to the next in a node
    network: float  # bytes a second and GPU between nodes
    node: int  # GPUs of a node


# NVIDIA's data sheets: bf16 without sparsity, NVLink 900 GB/s both ways, InfiniBand at 400 Gb/s a GPU. Of an
# operator of PyTorch 5 to 25 us of CPU time are reported. Half of the peak rates is a guess.
H100 = Machine("H100 SXM", 989e12, 67e12, 3.35e12, 0.5, 5e-6, 450e9, 50e9, 8)


@dataclass(frozen=True)
class Work:
    """Counted work of a step or a part of it."""

    multiply_adds: float
    bytes: float  # read and written by operators, each by itself
    launches: float

    def of(self, images, two):
        """The work of so many images, if this is that of one and `two` that of two."""
        pairs = ((getattr(self, key), getattr(two, key)) for key in ("multiply_adds", "bytes", "launches"))
        return Work(*(one + (images - 1) * (both - one) for one, both in pairs))

    def halved(self):
        """The same with values of half the bytes."""
        return Work(self.multiply_adds, self.bytes / 2, self.launches)


def count(step):
    """Work: of a call of `step`."""
    with FlopCounterMode(display=False) as flops, CountLaunches() as counted:
        step()
    return Work(flops.get_total_flops() / 2, counted.bytes, len(counted.names))


def seconds(work, machine, rate):
    """The longest of the products (`rate` operations a second), the memory and the launches: they overlap."""
    return max(
        2 * work.multiply_adds / (rate * machine.reached),
        work.bytes / (machine.memory * machine.reached),
        work.launches * machine.launch,
    )


def all_reduce_seconds(size, gpus, machine):
    """A ring's: each GPU sends 2 (P - 1) / P times `size` bytes, over the slowest link of the ring."""
    speed = machine.link if gpus <= machine.node else machine.network
    return 2 * (gpus - 1) / gpus * size / speed
