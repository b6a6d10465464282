"""The main job for real: mpirun -n N python examples/ecd_resnet.py, with every flag that writes."""

import json
from pathlib import Path

from launching import EXAMPLE, mpirun

SEVERAL = Path(__file__).parent / "several.py"

KEYS = {
    "algorithm",
    "topology",
    "compressor",
    "bits",
    "block_size",
    "world_size",
    "parameters",
    "steps",
    "test_accuracy",
    "train_loss",
    "bytes_sent_per_rank_per_step",
    "consensus_distance",
    "wall_s",
}
PARAMETERS = 269_434  # ResNet-20 for one channel and ten classes


SHARDS = [66 * 1024] * 3 + [PARAMETERS - 3 * 66 * 1024]  # of 4 ranks


def payload_nbytes(numel, bits=4, block_size=8192):
    return 32 + 4 * -(-numel // block_size) + (numel * bits + 7) // 8


def run(tmp_path, ranks, flags, timeout=200):
    result = tmp_path / "result.json"
    result.unlink(missing_ok=True)
    job = mpirun(ranks, EXAMPLE, "--json", result, *flags.split(), timeout=timeout)
    assert job.status == 0, job.output
    return json.loads(result.read_text()), job.output


def test_main_job_and_everything_it_writes(tmp_path):
    logs, checkpoints = tmp_path / "logs", tmp_path / "checkpoints"
    flags = f"--epochs 3 --log-dir {logs} --checkpoint-dir {checkpoints}"
    result, output = run(tmp_path, 3, flags)
    assert result.keys() >= KEYS
    assert (result["algorithm"], result["compressor"]) == ("ecd-psgd", "nuqsgd")
    assert (result["world_size"], result["parameters"]) == (3, PARAMETERS)
    assert result["steps"] == 3 * 30  # 1437 // 3 images a rank, batches of 16
    assert result["test_accuracy"] > 0.9
    assert result["coding"] == "fixed"  # on one host
    # the acceptance: on a ring exactly two payloads a step, and 4 bits are 4 bits
    assert result["bytes_sent_per_rank_per_step"] == 2 * payload_nbytes(PARAMETERS)
    assert result["consensus_distance"] > 0
    for key in KEYS:
        assert f"{key} " in output
    assert "state_sha256" not in output  # which the JSON has
    assert (logs / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = (logs / "curves.csv").read_text().splitlines()
    assert rows[0] == "step,bytes_sent,train_loss,test_accuracy" and len(rows) == 1 + 3
    assert rows[-1].split(",")[0] == "90"
    assert list(logs.glob("events.out.tfevents.*"))
    assert sorted(p.name for p in checkpoints.iterdir()) == [f"step-{n:08}" for n in (30, 60, 90)]
    assert len(result["state_sha256"]) == 3 and result["failures"] == []
    # Nothing is left to train, so a resume evaluates what the checkpoints hold.
    resumed, _ = run(tmp_path, 3, f"{flags} --resume")
    assert resumed["test_accuracy"] == result["test_accuracy"]
    assert resumed["state_sha256"] == result["state_sha256"]
    assert resumed["steps"] == result["steps"]


SENT = {  # by rank 0 of 4 in a step
    "--topology torus": 2 * payload_nbytes(PARAMETERS),
    "--topology torus --rows 1 --columns 4 --compressor qsgdinf --bits 3": (
        2 * payload_nbytes(PARAMETERS, bits=3)
    ),
    "--topology complete --compressor qsgdinf": 3 * payload_nbytes(PARAMETERS),
    "--algorithm d-psgd --compressor none": 2 * (32 + 4 * PARAMETERS),
    "--algorithm allreduce --exchange all-gather --block-size 512": (
        3 * payload_nbytes(PARAMETERS, 4, 512)
    ),
    # a part to each owner, and its shard's mean to all
    "--algorithm allreduce": sum(map(payload_nbytes, SHARDS[1:] + 3 * SHARDS[:1])),
    "--algorithm allreduce --compressor none": 2 * 3 * 4 * PARAMETERS // 4,
}


def test_flags_choose(tmp_path):
    common = "--max-steps 4 --device cpu --json"
    runs = [f"{flags} {common} {tmp_path / str(i)}" for i, flags in enumerate(SENT)]
    job = mpirun(4, SEVERAL, *runs, timeout=200)
    assert job.status == 0, job.output
    results = [json.loads((tmp_path / str(i)).read_text()) for i in range(len(SENT))]
    sent = [result["bytes_sent_per_rank_per_step"] for result in results]
    assert dict(zip(SENT, sent, strict=True)) == SENT
    assert max(result["train_loss"] for result in results) < 3


def test_one_rank_and_no_launcher(tmp_path):
    result, _ = run(tmp_path, 1, "--max-steps 20")
    assert (result["world_size"], result["bytes_sent_per_rank_per_step"]) == (1, 0)


def test_ecd_as_published_fails_to_train(tmp_path):
    """docs/ecd-psgd.md: it ends, but learns nothing, where the main job above reaches .9."""
    published, _ = run(tmp_path, 3, "--epochs 3 --published")
    assert published["test_accuracy"] < 0.5
