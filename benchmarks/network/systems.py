"""The systems under comparison: each takes one training step, with its own communication.

A system has step(x, y), finish() for what is still under way, and stats(). `warm_up` steps come
before its steps are alike; `launch` says which job it runs in, "gloo" or "mpi".
"""

import torch
from mlp import loss_of
from torch.nn.parallel import DistributedDataParallel

import decentral

LR = 0.01


class System:
    """Plain SGD on one process, which is what computing alone costs."""

    launch, warm_up = "gloo", 1

    def __init__(self, model, lr=LR):
        self.model = self.evaluated = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr)

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss_of(self.model, x, y).backward()
        self.optimizer.step()

    def finish(self):
        """Wait for what is under way, so that the next system has the network for itself."""

    def averaged(self):
        """Replace the model by the ranks' average, where they differ, for evaluation."""

    def restore(self):
        """Undo averaged()."""

    def stats(self):
        return {}


class SystemMPI(System):
    """The same among processes of the MPI job."""

    launch = "mpi"


class DDP(System):
    """PyTorch's DistributedDataParallel over gloo, in float32."""

    bucket_cap_mb = None  # PyTorch's default

    def __init__(self, model, lr=LR):
        super().__init__(model, lr)
        # equal from the start: no need to send 42 MB to everyone
        options = {"bucket_cap_mb": self.bucket_cap_mb, "init_sync": False}
        self.model = DistributedDataParallel(model, **options)
        self.hook()

    def hook(self):
        """Register a communication hook."""


class DDPFloat16(DDP):
    """DDP with its fp16_compress_hook."""

    def hook(self):
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        self.model.register_comm_hook(None, default_hooks.fp16_compress_hook)


class DDPPowerSGD(DDP):
    """DDP with its PowerSGD hook, rank 1; on gloo it hangs with more than one bucket."""

    warm_up = 3  # two of them without compression, and one that sets up
    bucket_cap_mb = 1024

    def hook(self):
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

        state = power.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        self.model.register_comm_hook(state, power.powerSGD_hook)


class DecentDP(System):
    """The package decent-dp: gossip with one neighbor a step, float32, overlapped with compute."""

    warm_up = 2  # it sets up its buckets in the second step

    def __init__(self, model, lr=LR):
        try:
            from decent_dp.ddp import DecentralizedDataParallel
        except ModuleNotFoundError as error:
            raise RuntimeError("decent-dp is not installed: pip install decent-dp") from error
        from loguru import logger

        logger.remove()
        self.evaluated = model
        self.model = DecentralizedDataParallel(
            model, lambda named: torch.optim.SGD([p for _, p in named], lr), topology="ring"
        )

    def step(self, x, y):
        loss_of(self.model, x, y).backward()  # its hooks do the rest

    def finish(self):
        for operation in self.model._comm_ops:
            if operation is not None:
                operation.wait()

    def averaged(self):
        self.model.global_avg()

    def restore(self):
        self.model.revert_global_avg()


class Decentral(System):
    """decentral.DistributedOptimizer."""

    launch = "mpi"
    algorithm, compressor, coding = "allreduce", "none", ""

    def __init__(self, model, lr=LR, bits=None):
        super().__init__(model, lr)
        options = {"bits": bits} if bits and self.takes_bits() else {}
        options |= {"coding": self.coding} if self.coding else {}
        compressor = decentral.compressors.from_name(self.compressor, **options)
        options = {} if self.algorithm == "allreduce" else {"topology": "ring"}
        algorithm = decentral.algorithms.from_name(self.algorithm, compressor=compressor, **options)
        self.optimizer = decentral.DistributedOptimizer(self.optimizer, model, algorithm)

    def takes_bits(self):
        # IntSGD's are 8 or 32: another thing than the others' 2 to 8
        options = decentral.compressors.options_of(self.compressor)
        return "bits" in options and self.compressor != "intsgd"

    def averaged(self):
        self._average = self.optimizer.averaged()
        self._average.__enter__()

    def restore(self):
        self._average.__exit__(None, None, None)

    def stats(self):
        return self.optimizer.stats()


def _decentral(algorithm, compressor, coding=""):
    choice = {"algorithm": algorithm, "compressor": compressor, "coding": coding}
    return type("Decentral", (Decentral,), choice)


SYSTEMS = {
    "compute": System,
    "compute-mpi": SystemMPI,
    "ddp": DDP,
    "ddp-fp16": DDPFloat16,
    "decent-dp": DecentDP,
    "ddp-powersgd": DDPPowerSGD,
    "allreduce-none": _decentral("allreduce", "none"),
    "allreduce-nuqsgd": _decentral("allreduce", "nuqsgd"),
    "allreduce-qsgdinf": _decentral("allreduce", "qsgdinf"),
    "allreduce-ef-signsgd": _decentral("allreduce", "ef-signsgd"),
    "allreduce-intsgd": _decentral("allreduce", "intsgd"),
    "d-psgd": _decentral("d-psgd", "none"),
    "ecd-psgd": _decentral("ecd-psgd", "nuqsgd"),
    "cocod-sgd": _decentral("cocod-sgd", "nuqsgd"),
    "allreduce-fixed": _decentral("allreduce", "nuqsgd", "fixed"),
    "allreduce-huffman": _decentral("allreduce", "nuqsgd", "huffman"),
    "ecd-psgd-fixed": _decentral("ecd-psgd", "nuqsgd", "fixed"),
    "cocod-sgd-fixed": _decentral("cocod-sgd", "nuqsgd", "fixed"),
    "ecd-psgd-huffman": _decentral("ecd-psgd", "nuqsgd", "huffman"),
}


def make(name, model, lr=LR, bits=4):
    """Return the named system around a model."""
    kind = SYSTEMS[name]
    return kind(model, lr, bits) if issubclass(kind, Decentral) else kind(model, lr)
