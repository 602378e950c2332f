"""The image path end to end: a teacher from fit-teacher, its cache, a small student, three seeds, resumable.

    python benchmarks/glyphs.py DATA OUT [--seeds 0,1,2]

DATA is a pattern of webdataset tars with train and test, such as 'examples/data/glyphs-{train,test}-000000.tar'. Glyphs
show that the path is right, not that distillation wins. Prints a table, and as the last line one JSON object.
"""

import argparse
import json
from pathlib import Path

from stages import run, scores_of, spread, summarise


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    teacher, cache = given.out / "teacher", given.out / "cache"
    fit = ["--model", "timm:resnet18", "--mode", "fr", "--img-size", "64", "--epochs", "4", "--data", given.data]
    run("fit-teacher", *fit, "--out", str(teacher), out=teacher / "config.json")
    run("extract", "--teacher", str(teacher), "--data", given.data, "--out", str(cache), out=cache / "seals")
    found = []
    for seed in given.seeds.split(","):
        folder = given.out / "runs" / f"mobilenetv3-{seed}"
        student = ["--student", "mobilenetv3_small_050", "--epochs", "30", "--seed", seed]
        command = ["train-student", "--cache", str(cache), *student, "--out", str(folder)]
        run(*command, *(["--resume"] if folder.exists() else []), out=folder / "summary.json")
        found.append(scores_of(folder, cache))
    facts = {name: [100 * scores[name] for scores in found] for name in ("accuracy", "agreement", "teacher_accuracy")}
    for name, values in facts.items():
        print(f"{name:<18}{summarise(values):>14}   ({spread(values)})")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
