import pytest

from ctxrec.core.dataset_spec import DatasetSpec, SplitSpec, load_spec
from ctxrec.core.errors import UserError

FULL = """
name = "my-shop"
[events]
path = "events/*.parquet"
user = "u"
action = "act"
[events.context]
categorical = ["device"]
[events.actions]
view = 0.2
dislike = -1
[items]
path = "s3://bucket/items.parquet"
text = ["title"]
[users]
path = "/abs/users.csv"
[graph]
path = "kg.tsv"
[split]
strategy = "last"
test = 1
"""


def write(folder, text):
    (folder / "dataset.toml").write_text(text)
    return str(folder / "dataset.toml")


def test_relative_paths_start_at_the_specs_folder(tmp_path):
    spec = load_spec(write(tmp_path, FULL))
    assert spec.events.path == f"{tmp_path}/events/*.parquet"
    assert spec.items.path == "s3://bucket/items.parquet"
    assert spec.users.path == "/abs/users.csv"
    assert spec.graph.path == f"{tmp_path}/kg.tsv"
    assert spec.events.actions == {"view": 0.2, "dislike": -1.0}
    assert (spec.events.user, spec.events.item, spec.events.time) == ("u", "item_id", "timestamp")
    assert DatasetSpec.from_dict(spec.to_dict()) == spec


def test_the_least_spec(tmp_path):
    spec = load_spec(write(tmp_path, 'name = "x"\n[events]\npath = "log.csv"\n'))
    assert spec.items is None and spec.users is None and spec.graph is None
    assert spec.split == SplitSpec(strategy="temporal", valid=0.1, test=0.1, repeats=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\n', "missing events"),
        ('name = "x"\n[events]\npath = "l"\nusr = "u"\n', r"unknown key 'events.usr'; valid keys are path, delimiter, encoding, decimal, user, item"),
        ('name = "x"\n[events]\npath = "l"\nuser = "u"\nitem = "u"\n', r"events.item and events.user are both 'u'"),
        ('name = "x"\n[events]\npath = "l"\nitem = "timestamp"\n', r"events.time and events.item are both 'timestamp'"),
        ('name = "x"\n[events]\npath = "l"\naction = "a"\n[events.actions]\nb = inf\n', r"events.actions.b is inf; expected a finite"),
        ('name = "x"\n[events]\npath = 3\n', "events.path is 3; expected a string"),
        ('name = "x"\n[events]\npath = "l"\n[items]\npath = "i"\ntext = "title"\n', r"items.text is 'title'; expected a list"),
        (
            'name = "x"\n[events]\npath = "l"\n[items]\npath = "i"\ncategorical = ["genres"]\n[items.separators]\ngenre = "|"\n',
            r"\[items.separators\] names column 'genre'; expected one of items.categorical: genres",
        ),
        (
            'name = "x"\n[events]\npath = "l"\n[items]\npath = "i"\ncategorical = ["year"]\nnumeric = ["year"]\n'
            '[items.separators]\nyear = "|"\n',
            r"\[items.separators\] names column 'year', which is the id or a number too",
        ),
        (
            'name = "x"\n[events]\npath = "l"\n[users]\npath = "i"\ncategorical = ["likes"]\n[users.separators]\nlikes = " "\n',
            r"users.separators.likes is ' '; expected what divides the values",
        ),
        ('name = "x"\n[events]\npath = "l"\n[split]\nstrategy = "random"\n', "expected one of temporal, last"),
        ('name = "x"\n[events]\npath = "l"\n[split]\nvalid = 0.5\ntest = 0.5\n', "expected below 1"),
        ('name = "x"\n[events]\npath = "l"\n[split]\nvalid = -0.1\n', "split.valid is -0.1"),
        ('name = "x"\n[events]\npath = "l"\n[events.actions]\nview = "much"\n', "events.actions.view is 'much'; expected a number"),
        ('name = "x"\n[events]\npath = "l"\n[events.actions]\nview = 1\n', r'names no column of actions; expected action = "COLUMN"'),
        ('name = "x"\n[events]\npath = "l"\n[events.context]\nnumeric = ["hour"]\n', r"column 'hour'; .*derived.*another name"),
        ('name = "x"\n[events]\npath = "l"\n[events.context]\ntext = ["timestamp"]\n', r"column 'timestamp'; a request's context"),
        ('name = "x"\n[events]\npath = "l"\n[events.context]\nnumeric = ["n"]\ntext = ["n"]\n', r"\[events.context\] names column 'n' twice"),
        ('name = "x"\n[events]\npath = "l"\n[items]\npath = "i"\ncategorical = ["c", "c"]\n', r"\[items.categorical\] names column 'c' twice"),
        ('name = "x"\n[events]\npath = "l"\n[users]\npath = "i"\ncategorical = ["age"]\nnumeric = ["age"]\n', r"\[users\] names column 'age' twice"),
        ("name = \n", "is not valid TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_spec(write(tmp_path, text))


def test_a_missing_spec_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing at .*none.toml"):
        load_spec(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("section", ["events", "items", "users", "graph"])
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("delimiter", ";;", "one ASCII character"),
        ("delimiter", '"', "one ASCII character"),
        ("encoding", "utf-9", "cp1252"),
        ("encoding", "hex", "cp1252"),
        ("encoding", "punycode", "cp1252"),
    ],
)
def test_how_a_file_is_written_is_checked(section, key, value, expected):
    raw = {"name": "x", "events": {"path": "e.csv"}}
    raw[section] = {"path": "t.csv", key: value}
    with pytest.raises(UserError, match=expected):
        DatasetSpec.from_dict(raw)


def test_a_log_in_the_place_of_a_spec_is_named(tmp_path):
    log = tmp_path / "ratings.csv"
    log.write_text("user,item\n1,2\n")
    with pytest.raises(
        UserError, match=r"ratings\.csv is no dataset spec; expected the dataset\.toml that `ctxrec init` writes"
    ):
        load_spec(str(log))
