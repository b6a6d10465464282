"""Train a ResNet data-parallel over MPI: mpirun -n 8 python examples/ecd_resnet.py

By default ECD-PSGD with NUQSGD at 4 bits over a ring, ResNet-20 on scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from typing import Any

import torch
from torch.nn import functional

import checkpoint
import datasets
import decentral
import flags
import paths
import report
import resnet
import shards
from evaluation import Evaluation
from flags import make_algorithm, parse_args
from stream import Start, Stream


def choose_device(name: str, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine or this build of torch has no CUDA")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


class Stopped(Exception):  # noqa: N818 (it is no error)
    """A rank was told to stop by a signal, `number`, and all of them have."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Training:
    """One run on one rank: everything that a mistake in flags or data can break is in __init__."""

    def __init__(self, args: argparse.Namespace, comm: Any = None) -> None:
        self.algorithm = make_algorithm(args)
        flags.check(args)
        self.args = args
        self.comm = comm = decentral.communicators.as_communicator(comm)
        if comm.rank == 0:
            paths.check(args)
            flags.warn(args, comm)
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
            sgd,
            self.model,
            self.algorithm,
            comm,
            seed=args.seed,
            timeout=args.timeout,
            **flags.rounds(args),
        )
        self.evaluation = Evaluation(self.opt, self.model, self.data.test)
        self.stream = self._stream(Start())
        self.total = args.epochs * self.stream.steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.opt, args.lr, total_steps=self.total, cycle_momentum=False
        )
        self.step = 0
        self.failures: tuple[int, ...] = ()
        self.losses: list[float] = []  # of this epoch
        self._watch_ranks()
        if args.resume:
            self._resume()
        self._open_log()

    def _watch_ranks(self) -> None:
        """Take what follows from which ranks there are."""
        self.comm = comm = self.opt.communicator
        folder = self.args.checkpoint_dir
        self.checkpoints = decentral.Checkpoints(folder, comm) if folder else None

    def _open_log(self) -> None:
        self.log = report.Log(self.args.log_dir if self.comm.rank == 0 else None, self.step)

    def _stream(self, start: Start) -> Stream:
        """Return this rank's batches, among the ranks that there are now."""
        args, comm, train = self.args, self.comm, self.data.train
        shard = shards.make_sampler(
            args.partition, args.alpha, comm.rank, comm.size, train, args.seed
        )
        stream = Stream(train, shard, args.batch_size, start)
        if stream.steps_per_epoch < 1:
            raise ValueError(
                f"{args.dataset} has {len(train)} training images, too few for {comm.size} ranks "
                "and batches of 2; use fewer ranks"
            )
        return stream

    # ---- stop, resume, go on ------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.opt, "schedule": self.schedule}

    def _state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()} | {
            "start": list(self.stream.start),
            "losses": self.losses,
            "total": self.total,
            "flags": flags.begun_with(self.args),
        }

    def _save(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save(self.step, self._state())

    def _resume(self) -> None:
        assert self.checkpoints is not None  # flags.check()
        found = self.checkpoints.load()
        if found is None:
            raise ValueError(f"--resume: expected a checkpoint in {self.args.checkpoint_dir}")
        state = found.of(self.comm.rank % found.size)
        flags.check_resumed(self.args, state["flags"])
        self.step, self.total = found.step, state["total"]
        start = Start(*state["start"])
        if found.size == self.comm.size:
            checkpoint.restore(self._parts(), state)
            self.stream, self.losses = self._stream(start), state["losses"]
            return
        checkpoint.adopt(self._parts(), found, self.comm.rank)
        self.stream = self._stream(self._next_epoch(start, found.size))
        if self.comm.rank == 0:
            logging.warning(
                f"resumed on {self.comm.size} ranks what {found.size} had saved at step "
                f"{self.step}: from the mean of their models, with momentum of one of them; "
                "residuals, estimates and norms begin anew, and so does an epoch"
            )

    def _next_epoch(self, start: Start, size: int) -> Start:
        """Return where those begin who take over at this step from so many ranks."""
        each = datasets.batch_count(len(self.data.train) // size, self.args.batch_size)
        return Start(self.step, start.epoch + -(-(self.step - start.step) // each))

    def _go_on(self, size: int) -> None:
        """Go on without the ranks that have died; there were `size` before."""
        begun, was_first = time.perf_counter(), self.comm.rank == 0
        self.failures = self.opt.recover()
        self._watch_ranks()
        self.step = self.opt.stats()["steps"]
        schedules = self.comm.all_gather_object(self.schedule.state_dict())
        self.schedule.load_state_dict(max(schedules, key=lambda s: s["last_epoch"]))
        self.stream = self._stream(self._next_epoch(self.stream.start, size))
        self.losses = []
        if not was_first:
            self._open_log()
        if self.comm.rank == 0:
            logging.warning(
                f"goes on at step {self.step} with {self.comm.size} ranks, without rank "
                f"{', '.join(map(str, self.failures))}, after {time.perf_counter() - begun:.1f} s"
            )

    # ---- training -----------------------------------------------------------------------------

    def train_step(self) -> None:
        """Take one step on this rank's next batch."""
        self.model.train()
        images, labels = (t.to(self.device) for t in self.stream.batch(self.step))
        self.opt.zero_grad()
        loss = functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.opt.step()
        self.schedule.step()
        if self.stream.place(self.step)[1] == 0:
            self.losses = []
        self.losses.append(loss.item())
        self.step += 1

    def _mean(self, value: float) -> float:
        return sum(self.comm.all_gather_object(value)) / self.comm.size

    def run(self) -> dict[str, Any]:
        """Train to the end, with whoever is left if --on-failure says so, and return the results.

        Raises:
            Stopped: a rank got SIGTERM or SIGINT.
            RankLostError: a rank has died.
        """
        begun = time.perf_counter()
        while True:
            size = self.comm.size
            try:
                return self._to_the_end(begun)
            except decentral.RankLostError:
                if self.args.on_failure != "continue":
                    raise
            self._go_on(size)

    def _to_the_end(self, begun: float) -> dict[str, Any]:
        args = self.args
        last = min(self.total, args.max_steps or self.total)
        with (
            decentral.StopRequest(self.comm) as stop,
            report.Progress(last, self.step, self.comm.rank == 0) as progress,
        ):
            while self.step < last:
                if told := stop.everyone():
                    self._save()
                    raise Stopped(told)
                self.train_step()
                sent = self.opt.stats()["bytes_sent"]
                progress.step(self.losses[-1], args.batch_size, sent)
                ends = self.stream.ends_epoch(self.step - 1)
                if ends and args.log_dir:
                    self.log.write(self._loss(), self.evaluation.averaged(), self.opt.stats())
                if self.step == last or self._is_time(ends):
                    self._save()
        digests = self.comm.all_gather_object(checkpoint.digest_of(self.model, self.opt))
        results = self._results(self.evaluation.averaged(), time.perf_counter() - begun)
        results["state_sha256"], results["failures"] = digests, list(self.failures)
        if args.evaluate == "each":
            results["rank_accuracies"] = self.evaluation.each()
        self.log.close()
        return results

    def _is_time(self, ends_epoch: bool) -> bool:
        every = self.args.checkpoint_every
        return self.step % every == 0 if every else ends_epoch

    def _loss(self) -> float | None:
        """Return the mean over ranks of their losses since the epoch began; None without any."""
        mine = sum(self.losses) / max(1, len(self.losses))
        return self._mean(mine) if self.losses else None

    def _results(self, accuracy: float, wall_s: float) -> dict[str, Any]:
        args, stats = self.args, self.opt.stats()
        compressor = self.algorithm.compressor
        return {
            "algorithm": args.algorithm + (" (published)" if args.published else ""),
            "topology": args.topology if flags.is_gossip(args) else None,
            "compressor": args.compressor,
            "bits": getattr(compressor, "bits", None),
            "block_size": getattr(compressor, "block_size", None),
            "world_size": self.comm.size,
            "parameters": stats["parameters"],
            "steps": stats["steps"],
            "test_accuracy": accuracy,
            "train_loss": self._loss(),
            "bytes_sent_per_rank_per_step": stats["bytes_sent"] / max(1, stats["steps"]),
            "bits_per_parameter": stats["bits_per_parameter"],
            "consensus_distance": stats["consensus_distance"],
            "wall_s": wall_s,
            **{k: stats[k] for k in ("clipped", "largest_integer", "coding") if k in stats},
            **flags.reproducing(args),
        }


def main() -> None:
    args = parse_args()
    logging.basicConfig(format="%(message)s")
    try:
        training = Training(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        decentral.communicators.end_job(str(error))
    try:
        results = training.run()
    except Stopped as stopped:
        training.comm.barrier()  # a launcher ends the others as soon as one has
        sys.exit(128 + stopped.number)
    except decentral.RankLostError as lost:
        decentral.communicators.end_job(
            f"{lost}; --resume from the last checkpoint, or let survivors go on: --on-failure "
            "continue, with Open MPI as `mpirun --with-ft ulfm`",
            status=1,
            on_all_ranks=False,
        )
    if training.comm.rank == 0:
        report.print_table(results)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
