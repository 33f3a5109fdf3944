"""Records as runs would have written them."""


def toy_record(experiment, scale="cpu", seed=1, final=None, diverged=None, table="cifar10", **more):
    """A record with a curve of three points; `final` is data set -> metrics."""
    curve = [
        {"iteration": i, "loss_cls": loss, "loss_ortho": 5.0, "total_loss": loss + 5, "lr": 0.1}
        for i, loss in ((99, 2.25), (199, 1.75), (390, 1.5))
    ]
    final = final or {}
    return {
        "experiment": experiment,
        "scale": scale,
        "label": experiment,
        "table": table,
        "setup": "depth 20, 2 epochs",
        "seed": seed,
        "starts_from": "",
        "commits": ["abc1234"],
        "uncommitted_changes": False,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "hardware": {"cpu": "a CPU", "cores": 2, "threads": [1], "gpu": None},
        "date": "2026-01-02",
        "wall_seconds": 1800.0,
        "seconds_per_iteration": 0.754,
        "peak_memory_mb": 1024,
        "peak_gpu_memory_mb": None,
        "parameters": 271_603,
        "flops": 40_817_280,
        "iterations": 391,
        "batch": 128,
        "dataset": "cifar10_train",
        "diverged_at": diverged,
        "final": final,
        "patients": {},
        "evaluations": {name: [{"iteration": 390, "metrics": metrics}] for name, metrics in final.items()},
        "curve": curve,
        "checkpoint_sha256": "0123456789abcdef",
        **more,
    }


def toy_records(*records):
    """scale -> experiment -> records, as the report takes them."""
    found = {"full": {}, "cpu": {}}
    for record in records:
        found[record["scale"]].setdefault(record["experiment"], []).append(record)
    return found
