"""What work holds at once, counted by hand."""

import torch

from mnemoscope.flows.memory import peak_bytes

CPU = torch.device("cpu")
MIB = 2**20


def one_after_the_other():
    for size in (1, 2, 1):
        kept = torch.zeros(size * MIB, dtype=torch.uint8)
        del kept


def together():
    first = torch.zeros(MIB, dtype=torch.uint8)
    second = torch.zeros(2 * MIB, dtype=torch.uint8)
    return len(first) + len(second)


def test_peaks_are_of_what_is_held_at_once():
    assert peak_bytes(one_after_the_other, CPU) == 2 * MIB
    assert peak_bytes(together, CPU) == 3 * MIB
    assert peak_bytes(lambda: None, CPU) == 0


def test_a_graph_is_held_until_it_is_gone():
    weight = torch.randn(256, 256, requires_grad=True)

    def deep(grad):
        with torch.set_grad_enabled(grad):
            x = weight
            for _ in range(8):
                x = (x @ weight).tanh()
            return float(x.detach().sum())

    # Eight products and eight activations, against two or three at once.
    assert peak_bytes(lambda: deep(True), CPU) > 2 * peak_bytes(lambda: deep(False), CPU)
