"""Options: defaults, files, overrides, and a clear error for everything that does not fit."""

from __future__ import annotations

import dataclasses
import re
import tomllib

import pytest

from ctxrec.core.config import Config, EncoderConfig, load_config, to_toml
from ctxrec.core.errors import UserError
from ctxrec.core.removed_options import REMOVED, lost_options


def test_no_file_gives_the_defaults():
    assert load_config() == Config()


def test_file_base_and_overrides_in_this_order(tmp_path):
    base, file = tmp_path / "base.toml", tmp_path / "file.toml"
    base.write_text("[model]\ndim = 32\nheads = 4\n[train]\nseed = 1\n")
    file.write_text("[model]\ndim = 16\n[evaluate]\nks = [10]\n")
    config = load_config(str(file), ["train.seed=7", "train.seed=8"], base=str(base))
    assert (config.model.dim, config.model.heads, config.train.seed, config.evaluate.ks) == (16, 4, 8, (10,))
    assert config.model.layers == Config().model.layers


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.encoder_epochs=auto", "train", "encoder_epochs", "auto"),
        ("train.encoder_epochs=2", "train", "encoder_epochs", 2),
        ("train.tower_lr=1", "train", "tower_lr", 1.0),  # a whole number where a number is wanted
        ("train.offload=true", "train", "offload", True),
        ('train.trackers=["mlflow", "wandb"]', "train", "trackers", ("mlflow", "wandb")),
        ("train.trackers=[]", "train", "trackers", ()),
        ("encoder.name=org/some-model", "encoder", "name", "org/some-model"),  # no TOML: a string
        ("encoder.name=", "encoder", "name", ""),
        (' encoder.name = "a=b" ', "encoder", "name", "a=b"),
    ],
)
def test_overrides_are_toml_or_a_string(override, section, key, value):
    found = getattr(getattr(load_config(None, [override]), section), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.sed=1", ["train.sed", "seed"]),
        ("trian.seed=1", ["trian", "train"]),
        ("train.seed=1.5", ["train.seed", "1.5", "whole number"]),
        ("train.seed=true", ["train.seed", "True", "whole number"]),
        ("train.offload=1", ["train.offload", "true or false"]),
        ("train.tower_lr=fast", ["train.tower_lr", "'fast'", "a number"]),
        ("train.tower_lr=nan", ["train.tower_lr", "nan"]),
        ("train.tower_lr=0", ["train.tower_lr", "above 0"]),
        ("train.trackers=wandb", ["train.trackers", "a list"]),
        ('train.trackers=["comet"]', ["train.trackers[0]", "comet", "mlflow"]),
        ("encoder.name=7", ["encoder.name", "a string"]),
        ("encoder.tune=all", ["encoder.tune", "lora"]),
        ('model.sources=["texts"]', ["model.sources[0]", "'texts'", "text, media, id"]),
        ("encoder.token_budget=8", ["encoder.token_budget", "max_tokens"]),
        ("model.dim=15", ["model.dim", "heads"]),
        ("model.dropout=1", ["model.dropout"]),
        ("train.zero_stage=4", ["train.zero_stage", "0, 1, 2 or 3"]),
        ("train.workers=3", ["train.global_batch_size", "train.workers"]),
        ("train.workers=-1", ["train.workers is -1", "[fewest, most]"]),
        ("train.workers=[2, 1]", ["train.workers is (2, 1)", "[fewest, most]"]),
        ("train.workers=[1, 65]", ["train.global_batch_size", "at least 65"]),
        ("train.workers=two", ["train.workers", "a whole number, or a list of them, such as [1, 2]"]),
        ("train.encoder_epochs=some", ["train.encoder_epochs", "a whole number, or auto"]),
        ("train.encoder_epochs=-1", ["train.encoder_epochs", "0 or more, or auto"]),
        ("train.micro_batch_size=-1", ["train.micro_batch_size"]),
        ("train.keep_checkpoints=1", ["train.keep_checkpoints", "at least 2"]),
        ("train.valid_users=-5", ["train.valid_users"]),
        ("train.seed=-1", ["train.seed"]),
        ("index.kind=annoy", ["index.kind", "hnsw"]),
        ("evaluate.ks=[5]", ["evaluate.ks", "10"]),
        ("evaluate.ks=10", ["evaluate.ks", "a list"]),
        ("seed=1", ["seed=1", "section.key=value"]),
        ("train.seed", ["train.seed", "section.key=value"]),
        ("train.seed.x=1", ["section.key=value"]),
    ],
)
def test_a_wrong_override_names_key_and_expectation(override, named):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_no_source_for_item_vectors_is_refused():
    with pytest.raises(UserError, match="at least one"):
        load_config(None, ['model.sources=["context", "memory"]'])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[train\n", "not valid TOML"),
        ("[train]\nseed = \n", r"line 2.*: seed ="),
        ("train = 3\n", "train"),
        ("[[train]]\nseed = 1\n", "train"),
        ("[train]\nseed = 1\n[extra]\n", "extra"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, named):
    file = tmp_path / "options.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        load_config(str(file))
    assert "options.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.toml"):
        load_config(str(tmp_path / "no.toml"))


def test_toml_round_trip_is_complete(tmp_path):
    config = load_config(
        None,
        [
            "train.trackers=[]",
            "train.tower_lr=1e-30",
            "evaluate.ks=[10, 1]",
            "train.offload=true",
            "train.workers=[1, 3]",
        ],
    )
    name = 'C:\\models\\"x"\nline'
    config = dataclasses.replace(config, encoder=EncoderConfig(name=name))
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    assert load_config(str(file)) == config
    plain = tomllib.loads(to_toml(config))
    assert {section: set(options) for section, options in plain.items()} == {
        section: set(options) for section, options in config.to_dict().items()
    }


def test_plain_round_trip():
    config = load_config(None, ["model.dim=16", "train.workers=[2, 4]"])
    assert (config.train.min_workers, config.train.max_workers) == (2, 4)
    assert Config.from_dict(config.to_dict()) == config


def test_caps_are_a_table(tmp_path):
    config = load_config(None, ['diversity.caps={category = 2, "a b" = 1}'])
    assert config.diversity.caps == {"category": 2, "a b": 1} and config.diversity.is_on
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(str(tmp_path / "config.toml")) == config
    for wrong, says in (("{category = 0}", "at least 1"), ("3", "a section of keys"), ('{c = "x"}', "a whole number")):
        with pytest.raises(UserError, match=f"diversity.caps.*{says}"):
            load_config(None, [f"diversity.caps={wrong}"])
    assert not Config().diversity.is_on


@pytest.mark.parametrize(("events", "epochs"), [(0, 15), (15_000, 15), (300_000, 5), (10_000_000, 4)])
def test_epochs_follow_from_the_size_of_the_log(events, epochs):
    assert Config().for_events(events).train.tower_epochs == epochs


def test_epochs_that_are_named_stay():
    config = load_config(None, ["train.tower_epochs=30"])
    assert config.for_events(10_000_000) == config


OLD = """
[model]
use_text = true
use_memory = false
use_context = false
[train]
seed = 7
label_smoothing = 0.1
warm_start = true
[evaluate]
ease_lambda = 300.0
seed = 0
"""


def test_a_file_of_an_earlier_version_loads_without_its_removed_options(tmp_path, caplog):
    saved = tmp_path / "config.toml"
    saved.write_text(OLD)
    config = load_config(None, ["train.workers=2"], base=str(saved))
    assert (config.train.seed, config.train.workers) == (7, 2)
    assert config.model.sources == ("text", "media", "id", "features", "user")
    (warning,) = [record.getMessage() for record in caplog.records]
    dropped = "train.label_smoothing, train.warm_start, evaluate.ease_lambda"
    assert warning == f"{saved}: these options were removed and are ignored: {dropped}"


def test_a_file_of_today_loads_without_a_warning(tmp_path, caplog):
    config = load_config(None, ['model.sources=["id", "user"]'])
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(base=str(tmp_path / "config.toml")) == config
    assert not caplog.records


def test_a_user_who_sets_a_removed_option_learns_what_to_use(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(OLD)
    with pytest.raises(
        UserError,
        match=r"mine\.toml: .*model\.use_memory.* are no longer options; .*model\.use_context: list the sources in model",
    ):
        load_config(str(file))
    for key in REMOVED:
        with pytest.raises(UserError, match=f"^--set: {key} is no longer an option; {re.escape(REMOVED[key].instead)}"):
            load_config(None, [f"{key}=1"])


def test_sources_have_one_order():
    config = load_config(None, ['model.sources=["memory", "id", "memory"]'])
    assert config.model.sources == ("id", "memory")
    assert config.model == load_config(None, ['model.sources=["id", "memory"]']).model


def test_a_whole_file_of_an_earlier_version_serves_as_a_users_file(tmp_path):
    """What it asks for at the defaults of then changes nothing; all that is gone is named in one line."""
    file = tmp_path / "config.toml"
    file.write_text("[model]\ndim = 32\nuse_text = true\n[train]\nlabel_smoothing = 0.0\nclip = 1.0\n")
    assert load_config(str(file)) == load_config(None, ["model.dim=32"])
    file.write_text("[model]\nuse_text = true\n[train]\nlabel_smoothing = 0.1\nwarm_start = true\nclip = 1.0\n")
    with pytest.raises(
        UserError, match=r"train\.label_smoothing, train\.warm_start are no longer options; train\.label"
    ):
        load_config(str(file))


def test_what_a_training_of_an_earlier_version_had_and_is_gone_is_told():
    raw = {"train": {"label_smoothing": 0.1, "clip": 1.0}, "model": {"use_text": False}, "evaluate": {"seed": 3}}
    assert lost_options(raw, ("encoder", "model", "train")) == ["train.label_smoothing"]
