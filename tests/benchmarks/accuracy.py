"""Whether the recipes reach what is known of two small data sets, by one plan and one command each.

    python tests/benchmarks/accuracy.py [sign_digits | hymenoptera] [--folder DIR]

sign_digits: fine-tuned and `lp_ft` each above a frozen probe (0.949 of val: frozen MobileNetV2 features at 224 px and a
logistic regression, as measured by those who prepared the set). hymenoptera: frozen, at least 0.93 of val.
Data and weights are taken from `../shared`. About 8 minutes together on two cores. Ends with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from workspaces import MOBILENET_V2, SHARED, say, workspace

COMMON: dict[str, Any] = {
    "backbones": ["mobilenet_v2"],
    "weights": str(MOBILENET_V2),
    "heads": ["linear"],
    "workers": {"count": 2},
}
# Each plan, and what every variant of it must read right of val: more than the first, or at least the second.
PLANS: dict[str, tuple[dict[str, Any], float, bool]] = {
    "sign_digits": (
        {
            "name": "sign_digits",
            "freeze": ["none", "lp_ft"],
            "fit": {"epochs": 8, "batch_size": 32, "learning_rate": 0.001, "image_size_px": 96, "augment": "light"},
        },
        0.949,
        True,
    ),
    "hymenoptera": (
        {
            "name": "hymenoptera",
            "freeze": ["all"],
            "fit": {"epochs": 8, "batch_size": 32, "learning_rate": 0.001, "image_size_px": 224},
        },
        0.93,
        False,
    ),
}


def measure(name: str, folder: Path | None) -> bool:
    """Whether every variant of the plan clears its bar; prints each one's figures."""
    plan, bar, above = PLANS[name]
    with workspace(SHARED / "data" / name, folder) as made:
        report = made.retrain(COMMON | plan)
    cleared = True
    for variant in report["variants"]:
        accuracy = variant["metrics"]["val/label/accuracy"]
        clears = accuracy > bar if above else accuracy >= bar
        cleared &= clears
        words = f"{'above' if above else 'at least'} {bar}: {'yes' if clears else 'NO'}"
        say(f"{name:<12} {variant['freeze']:<6} val accuracy {accuracy:.4f}  {words}  {variant['seconds']:.0f} s")
    say(f"{name:<12} candidate {report['candidate']} holdout accuracy {report['holdout']['label/accuracy']:.4f}")
    return cleared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PLANS, []], default=[])
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    cleared = [measure(name, asked.folder) for name in asked.names or PLANS]
    raise SystemExit(0 if all(cleared) else 1)


if __name__ == "__main__":
    main()
