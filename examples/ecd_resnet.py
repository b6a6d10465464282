"""Train a ResNet data-parallel over MPI: mpirun -n 8 python examples/ecd_resnet.py

By default ECD-PSGD with NUQSGD at 4 bits over a ring, ResNet-20 on scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import checkpoint
import datasets
import decentral
import flags
import report
import resnet
import shards
from flags import make_algorithm, parse_args


def choose_device(name: str, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine or this build of torch has no CUDA")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


class Training:
    """One run on one rank: everything that a mistake in flags or data can break is in __init__."""

    def __init__(self, args: argparse.Namespace, comm: Any = None) -> None:
        self.algorithm = make_algorithm(args)
        flags.check(args)
        self.args = args
        self.comm = comm = decentral.communicators.as_communicator(comm)
        torch.set_num_threads(comm.cores_per_rank)
        self.device = choose_device(args.device, comm.local_rank)
        self.data = datasets.load(args.dataset, args.data_dir)
        torch.manual_seed(args.seed)
        net = resnet.build(args.model, self.data.in_channels, self.data.num_classes)
        self.model = net.to(self.device)
        sgd = torch.optim.SGD(
            self.model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay
        )
        self.opt = decentral.DistributedOptimizer(
            sgd, self.model, self.algorithm, comm, seed=args.seed, **flags.rounds(args)
        )
        self.shard = shards.make_sampler(
            args.partition, args.alpha, comm.rank, comm.size, self.data.train, args.seed
        )
        self.steps_per_epoch = datasets.batch_count(len(self.shard), args.batch_size)
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"{args.dataset} has {len(self.data.train)} training images, too few for "
                f"{comm.size} ranks and batches of 2; use fewer ranks"
            )
        total = args.epochs * self.steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.opt, args.lr, total_steps=total, cycle_momentum=False
        )
        self.first_epoch = self._resume() if args.resume else 0

    def _state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.opt, "schedule": self.schedule}

    def _resume(self) -> int:
        epoch = checkpoint.load(self.args.checkpoint_dir, self.comm.rank, self._state())
        epochs = self.comm.all_gather_object(epoch)
        if len(set(epochs)) > 1:
            raise ValueError(f"the ranks' checkpoints are of epochs {epochs}, expected one epoch")
        return epoch

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        key = (self.args.seed, epoch, self.comm.rank)
        mine = self.shard.epoch(epoch)
        for images, labels in datasets.batches(self.data.train, mine, self.args.batch_size, key):
            yield images.to(self.device), labels.to(self.device)

    def train_epoch(self, epoch: int, progress: report.Progress) -> float:
        """Return the mean loss of this epoch over all ranks."""
        self.model.train()
        total = 0.0
        for images, labels in self._batches(epoch):
            self.opt.zero_grad()
            loss = functional.cross_entropy(self.model(images), labels)
            loss.backward()
            self.opt.step()
            self.schedule.step()
            total += loss.item()
            progress.step(loss.item(), len(labels), self.opt.stats()["bytes_sent"])
        return self._mean(total / self.steps_per_epoch)

    def evaluate(self) -> float:
        """Return the test accuracy of the averaged model; the ranks share the images.

        BatchNorm's running statistics are then those of all ranks' data, seen by their own models.
        """
        mine = torch.arange(self.comm.rank, len(self.data.test), self.comm.size)
        with self.opt.averaged():
            correct = self._correct(mine)
        return sum(self.comm.all_gather_object(correct)) / len(self.data.test)

    def evaluate_each(self) -> list[float]:
        """Return the test accuracy of every rank's own model, on all images, by rank."""
        correct = self._correct(torch.arange(len(self.data.test)))
        return [c / len(self.data.test) for c in self.comm.all_gather_object(correct)]

    @torch.no_grad()
    def _correct(self, indices: Tensor) -> int:
        """Return how many of these test images the model, as it is, gets right."""
        self.model.eval()
        correct = 0
        for images, labels in datasets.batches(self.data.test, indices, batch_size=256):
            guess = self.model(images.to(self.device)).argmax(1).cpu()
            correct += int((guess == labels).sum())
        return correct

    def _mean(self, value: float) -> float:
        return sum(self.comm.all_gather_object(value)) / self.comm.size

    def run(self) -> dict[str, Any]:
        args, rank = self.args, self.comm.rank
        start = time.perf_counter()
        loss = accuracy = None
        log = report.Log(args.log_dir if rank == 0 else None)
        with report.Progress(
            self.steps_per_epoch * args.epochs, self.first_epoch * self.steps_per_epoch, rank == 0
        ) as progress:
            for epoch in range(self.first_epoch, args.epochs):
                loss = self.train_epoch(epoch, progress)
                if args.log_dir or epoch == args.epochs - 1:
                    accuracy = self.evaluate()
                    log.write(loss, accuracy, self.opt.stats())
                if args.checkpoint_dir:
                    checkpoint.save(args.checkpoint_dir, rank, epoch + 1, self._state())
        if accuracy is None:  # resumed after the last epoch
            accuracy = self.evaluate()
        log.close()
        results = self._results(loss, accuracy, time.perf_counter() - start)
        if args.evaluate == "each":
            results["rank_accuracies"] = self.evaluate_each()
        return results

    def _results(self, loss: float | None, accuracy: float, wall_s: float) -> dict[str, Any]:
        args, stats = self.args, self.opt.stats()
        compressor = self.algorithm.compressor
        return {
            "algorithm": args.algorithm + (" (published)" if args.published else ""),
            "topology": args.topology,
            "compressor": args.compressor,
            "bits": getattr(compressor, "bits", None),
            "block_size": getattr(compressor, "block_size", None),
            "world_size": self.comm.size,
            "parameters": stats["parameters"],
            "steps": stats["steps"],
            "test_accuracy": accuracy,
            "train_loss": loss,
            "bytes_sent_per_rank_per_step": stats["bytes_sent"] / max(1, stats["steps"]),
            "bits_per_parameter": stats["bits_per_parameter"],
            "consensus_distance": stats["consensus_distance"],
            "wall_s": wall_s,
            **{k: stats[k] for k in ("clipped", "largest_integer") if k in stats},
            **flags.reproducing(args),
        }


def main() -> None:
    args = parse_args()
    logging.basicConfig(format="%(message)s")
    try:
        training = Training(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        decentral.communicators.end_job(str(error))
    results = training.run()
    if training.comm.rank == 0:
        report.print_table(results)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
