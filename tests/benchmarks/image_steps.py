"""The steps of infra/Dockerfile in a clean root, where no engine is: `python tests/benchmarks/image_steps.py ROOT`.

Makes the root by debootstrap, with Debian's Python in place of the base image's, copies and runs what the file says, stage by
stage, and ends with `headstart doctor` as the image's user. Needs root, debootstrap and ways out.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "infra" / "Dockerfile"
# What the base image has beside Debian itself. Its `python` is on the path by that name.
BASE = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"

WAYS_OUT = ("PIP_", "UV_", "http", "HTTP", "SSL_CERT")


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


class Stage:
    """A stage of the image: a folder that is its root, and the environment, folder and user of its next step."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.user = root, "/", ""
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/root",
            "PIP_BREAK_SYSTEM_PACKAGES": "1",
        }

    def run(self, command: str) -> None:
        """Run a command in the root, or end the program with its status."""
        script = f"cd {shlex.quote(self.folder)} && {command}"
        user = [f"--userspec={self.user}"] if self.user else []
        started = time.monotonic()
        done = subprocess.run(["chroot", *user, str(self.root), "/bin/sh", "-ec", script], env=self.environment, check=False)
        sys.stdout.write(f"  {time.monotonic() - started:.0f} s, status {done.returncode}: {command[:100]}\n")
        sys.stdout.flush()
        if done.returncode:
            sys.exit(done.returncode)

    def copy(self, words: list[str], stages: dict[str, Stage]) -> None:
        """Copy from the repository, or from another stage."""
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        *sources, target = [word for word in words if not word.startswith("--")]
        origin = stages[options["from"]].root if "from" in options else REPOSITORY
        for source in sources:
            place = self.root / os.path.join(self.folder, target).lstrip("/")
            place = place / Path(source).name if target.endswith("/") or target == "." else place
            place.parent.mkdir(parents=True, exist_ok=True)
            if (origin / source.lstrip("/")).is_dir():
                subprocess.run(["cp", "-a", "-T", str(origin / source.lstrip("/")), str(place)], check=True)
            else:
                shutil.copy(origin / source, place)
            if mode := options.get("chmod"):
                place.chmod(int(mode, 8))


def clean_root(folder: Path) -> None:
    """A Debian root with the Python of the base image."""
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={BASE}", "bookworm", str(folder)], check=True, stdout=subprocess.DEVNULL
    )
    # This machine's own ways out: names, mirrors, registries, certificates.
    for own in ("resolv.conf", "hosts", "pip.conf", "ssl/certs/ca-certificates.crt"):
        if (place := Path("/etc") / own).exists():
            subprocess.run(["cp", "-a", "-L", "-T", str(place), str(folder / "etc" / own)], check=True)


def main(folder: Path) -> None:
    """Follow the Dockerfile below the folder, which must be empty or missing."""
    folder.mkdir(parents=True, exist_ok=True)
    clean_root(folder / "base")
    stages: dict[str, Stage] = {}
    stage = Stage(folder / "base")
    for word, rest in instructions():
        sys.stdout.write(f"{word} {rest[:100]}\n")
        match word:
            case "FROM":
                name = rest.split()[-1] if " AS " in rest else "last"
                subprocess.run(["cp", "-a", str(folder / "base"), str(folder / name)], check=True)
                stage = stages[name] = Stage(folder / name)
                stage.environment |= {name: value for name, value in os.environ.items() if name.startswith(WAYS_OUT)}
            case "ENV":
                for pair in shlex.split(rest):
                    name, _, value = pair.partition("=")
                    stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
            case "WORKDIR":
                stage.folder = rest
                (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = rest
            case "COPY":
                stage.copy(rest.split(), stages)
            case "RUN":
                stage.run(rest)
    stage.environment |= {"HOME": "/home/headstart"}
    stage.run("/usr/local/bin/entrypoint.sh headstart init . && /usr/local/bin/entrypoint.sh headstart doctor")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
