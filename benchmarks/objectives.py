"""Every objective of the catalogue on one student, beside a few labels: equal steps, three seeds, resumable.

    python benchmarks/objectives.py DATA OUT [--labels 500] [--steps 1500] [--seeds 0,1,2] [--only NAME,NAME]

DATA is a folder with a train and a test text file (`text` and `label` columns). The teacher is MiniLM; its logits come
from a linear probe on the same few labels. Each student learns from one objective over all texts, at the weight of its
paper, and from cross-entropy on the few labels; `ce` alone is what they are compared with, seed by seed. Nothing is
chosen here, and the test part is looked at once, at the end of each run. Prints a table, and as the last line one JSON
object.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from measuring import show
from stages import run, spread, summarise

from pipelines import evaluate_run, finish, train_student

TERMS = {
    "ce": "ce",
    "kl, T = 1": "kl(temperature=1),ce",
    "kl, standardised logits": "kl(temperature=2,standardise=1),ce",
    "dkd": "dkd,ce",
    "dist": "dist:2,ce",
    "srrl": "srrl,ce",
    "align-uniform": "align-uniform,ce",
    "align-uniform and kl (DAPT)": "align-uniform,kl(temperature=4),ce",
    "infonce, 1,024 of the cache": "infonce(negatives=1024),ce",
    "seed": "seed,ce",
    "siglip": "siglip,ce",
    "crd": "crd:0.8,ce",
    "vicreg": "vicreg,ce",
    "cosine": "cosine,ce",
    "mse": "mse:100,ce",
    "smooth-l1": "smooth-l1:100,ce",
    "rkd": "rkd,ce",
    "sp": "sp:3000,ce",
    "pkt": "pkt:30000,ce",
    "hidden": "hidden,ce",
    "minilm": "minilm,ce",
}
"""What each row of the table is trained towards; the weights are those of the papers (docs/objectives.md)."""

STUDENT = {"student": "bert:2x64", "max_length": 64, "batch_size": 32, "learning_rate": 1e-3}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="names of rows; the others are left out of the table")
    given = parser.parse_args()
    cache = given.out / "cache"
    teacher = ("--teacher", "minilm", "--max-length", str(STUDENT["max_length"]))
    outputs = ("--outputs", "embedding,hidden.last,qkv.last")
    run("extract", *teacher, *outputs, "--data", str(given.data), "--out", str(cache), out=cache / "seals")
    run("probe", "--cache", str(cache), "--labels", str(given.labels), out=cache / "train" / "probe" / "part.json")
    names = [name for name in TERMS if not given.only or name in given.only.split(",") or name == "ce"]
    scores: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in map(int, given.seeds.split(",")):
        for number, name in enumerate(names, 1):
            print(f"seed {seed}, {number} of {len(names)}: {name}", flush=True)
            folder = given.out / "runs" / f"{name.replace(', ', '-').replace(' ', '-').replace(',', '')}-{seed}"
            scores[name].append(scored(folder, cache, TERMS[name], seed, given))
    report(scores)


def scored(folder: Path, cache: Path, objective: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run and its scores on the test part, kept beside it."""
    kept = folder / "test.json"
    if not kept.exists():
        recipe = {**STUDENT, "objective": objective, "labels": given.labels, "steps": given.steps, "seed": seed}
        finish(train_student(cache=cache, out=folder, resume=folder.exists(), workers=0, **recipe))
        kept.write_text(json.dumps(finish(evaluate_run(run=folder, cache=cache, split="test", features=False))))
    found: dict[str, Any] = json.loads(kept.read_text())
    return {**found, "seconds": json.loads((folder / "summary.json").read_text())["seconds"]}


def report(scores: dict[str, list[dict[str, Any]]]) -> None:
    """Test accuracy, what it has more than labels alone (paired by seed), agreement, and seconds of training."""
    points = {name: [100 * result["accuracy"] for result in found] for name, found in scores.items()}
    rows, facts = [], {}
    for name, values in points.items():
        differences = [ours - alone for ours, alone in zip(values, points["ce"], strict=True)]
        agreement = [100 * result["agreement"] for result in scores[name]]
        seconds = statistics.median(result["seconds"] for result in scores[name])
        rows.append(
            (name, summarise(values), spread(values), summarise(differences), summarise(agreement), f"{seconds:.0f}")
        )
        facts[name] = {"accuracy": values, "more": differences, "agreement": agreement, "seconds": seconds}
    show(("", "accuracy, %", "seeds", "more than ce", "agreement, %", "seconds"), rows)
    print(f"teacher, a linear probe: {100 * scores['ce'][0]['teacher_accuracy']:.1f} %")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
