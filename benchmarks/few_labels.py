"""A distilled text student against the same student on the labels alone: equal steps, three seeds, resumable.

    python benchmarks/few_labels.py DATA OUT [--labels 500] [--steps 1500] [--seeds 0,1,2]

DATA is a folder with a train and a test text file (`text` and `label` columns). The teacher is MiniLM; its logits come
from a linear probe that sees the same few labels as the student alone. Nothing is chosen here on the test part; what
was chosen elsewhere is said in docs/results.md. Prints a table, and as the last line one JSON object.
"""

import argparse
import json
import statistics
from pathlib import Path

from stages import run, scores_of, spread, summarise


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--few-steps", type=int, default=300, help="for labels alone, which overfits in many steps")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--student", default="bert:2x128")
    parser.add_argument("--max-length", type=int, default=64)
    given = parser.parse_args()
    cache, labels = given.out / "cache", str(given.labels)
    run("extract", "--teacher", "minilm", "--data", str(given.data), "--out", str(cache), out=cache / "seals")
    run("probe", "--cache", str(cache), "--labels", labels, out=cache / "train" / "probe" / "part.json")
    arms = {
        "distilled": ["--objective", "kl(temperature=1):1.0", "--steps", str(given.steps)],
        "labels alone": ["--objective", "ce:1.0", "--labels", labels, "--steps", str(given.steps)],
        "labels alone, few steps": ["--objective", "ce:1.0", "--labels", labels, "--steps", str(given.few_steps)],
    }
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for seed in given.seeds.split(","):
        for arm, options in arms.items():
            folder = given.out / "runs" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
            shared = ["--student", given.student, "--max-length", str(given.max_length), "--lr", "1e-3", "--seed", seed]
            command = ["train-student", "--cache", str(cache), *shared, *options, "--out", str(folder)]
            run(*command, *(["--resume"] if folder.exists() else []), out=folder / "summary.json")
            scores[arm].append(scores_of(folder, cache))
    report(scores)


def report(scores: dict[str, list[dict[str, float]]]) -> None:
    """Mean, standard deviation over seeds, and paired differences, in points of test accuracy."""
    points = {arm: [100 * result["accuracy"] for result in results] for arm, results in scores.items()}
    teacher = 100 * scores["distilled"][0]["teacher_accuracy"]
    agreement = [100 * result["agreement"] for result in scores["distilled"]]
    for arm, values in points.items():
        print(f"{arm:<26}{summarise(values):>14}   ({spread(values)})")
    print(f"{'teacher, linear probe':<26}{teacher:>7.1f}")
    facts = {"teacher": teacher, "agreement": agreement, "points": points}
    for other in list(points)[1:]:
        differences = [ours - theirs for ours, theirs in zip(points["distilled"], points[other], strict=True)]
        facts[f"distilled less {other}"] = {"mean": statistics.mean(differences), "sd": statistics.stdev(differences)}
        print(f"distilled less {other}: {summarise(differences)}")
    print(f"agreement of distilled with its teacher: {summarise(agreement)}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
