"""Write the files of kuberay/ and ray-up/ from settings.toml, pyproject.toml and serve/config.yaml.

    python -m cluster.render           # write them
    python -m cluster.render --check   # only say whether they are up to date (exit 1 if not)

Everything that two files must agree on (image, versions, variables, ports, addresses in storage, commands) has one
place here or in settings.toml, so that no file can fall behind another.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from cluster import launchers, manifests
from cluster.settings import Settings, load

HERE = Path(__file__).resolve().parent
NOTE = "# Written by `python -m cluster.render` from cluster/settings.toml; change that, not this file.\n"


def files(settings: Settings) -> dict[str, str]:
    """The text of every generated file, by its path below cluster/."""
    documents = {f"kuberay/{name}": made for name, made in manifests.manifests(settings).items()}
    documents |= {f"ray-up/{name}": [made] for name, made in launchers.clusters(settings).items()}
    return {
        name: NOTE + yaml.dump_all(made, Dumper=_Dumper, sort_keys=False, width=110) for name, made in documents.items()
    }


class _Dumper(yaml.SafeDumper):
    """Writes a value again where YAML would point at its first place, and keeps texts of several lines readable."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.render", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is not up to date")
    check = parser.parse_args().check
    stale = []
    for name, text in files(load()).items():
        path = HERE / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    print(f"{'not up to date' if check else 'written'}: {', '.join(stale)}" if stale else "up to date")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
