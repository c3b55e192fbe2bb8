"""Where the value of each option comes from."""

from __future__ import annotations

import tomllib

from ctxrec.core.config import Config, load_config, to_toml
from ctxrec.core.option_origins import Resolved, annotated_config, names_of, option_origins


def test_the_last_source_counts(tmp_path):
    base, file = tmp_path / "base.toml", tmp_path / "file.toml"
    base.write_text("[model]\ndim = 32\nheads = 4\n[train]\nseed = 1\n")
    file.write_text("[model]\ndim = 16\n[evaluate]\nks = [10]\n")
    found = option_origins(str(file), ["train.seed=7", "train.seed = 8"], base=str(base))
    assert found.keys() == names_of(Config()).keys()
    assert found["model.heads"] == str(base) and found["model.dim"] == found["evaluate.ks"] == str(file)
    assert found["train.seed"] == "--set" and found["model.layers"] == "default"
    assert {name for name, origin in found.items() if origin != "default"} == {
        "model.dim", "model.heads", "train.seed", "evaluate.ks",
    }  # fmt: skip


def test_what_is_printed_is_the_options_as_they_are_used(tmp_path):
    """The text is a config file: whoever runs it again gets the same values on another machine too."""
    config = load_config(None, ["train.seed=7", 'diversity.caps={"a b" = 2}', "encoder.name=a#b"])
    resolved = {
        "train.tower_epochs": Resolved("size of the log: 10 events", 15),
        "train.eval_every": Resolved("0: once an epoch"),
    }
    text = annotated_config(config, option_origins(None, ["train.seed=7"]), resolved)
    (tmp_path / "c.toml").write_text(text)
    read = load_config(str(tmp_path / "c.toml"))
    assert read.train.tower_epochs == 15
    assert names_of(read) | {"train.tower_epochs": 0} == names_of(config)
    lines = {line.split(" = ")[0]: line for line in text.splitlines()}
    assert lines["tower_epochs"].endswith("# size of the log: 10 events (default: 0)")
    assert lines["eval_every"].startswith("eval_every = 0 ") and lines["eval_every"].endswith(
        "# default; 0: once an epoch"
    )
    assert len(tomllib.loads(text)) == len(tomllib.loads(to_toml(config)))
    assert list(tomllib.loads(annotated_config(config, option_origins(), {}, sections=("index",)))) == ["index"]
