"""The paths inside a run, inside a bundle and beside published models. No other file spells such a path.

RUN/config.toml  manifest.json                         options as used; versions, hashes, where the data lies
RUN/metrics.json  report.html  requests.parquet        what ctxrec.evaluate wrote; evaluated.txt says of which model
RUN/stream/                                            what ctxrec.evaluate --stream wrote
RUN/train_log.jsonl  profile/                          curves of the training; traces of --profile
RUN/checkpoints/                                       what a training goes on from; before/ and tuned/ are bundles
RUN/bundle/  reranker/                                 all that serving needs; the second stage, where there is one
RUN/reranking/                                         what a training of the second stage goes on from
RUN/ablations/NAME/                                    a run with one option changed
MODELS/current.json  versions/VERSION/                 which version is served; a bundle of each version
MODELS/rerankers/VERSION/                              the second stage of a version, where it has one
MODELS/experiment.json                                 the A/B test that runs
MODELS/decisions/VERSION.json  VERSION.html            why ctxrec.refresh published a version, or did not
WORK/state.json  round-000001/                         how far ctxrec.refresh is; data/ and run/ of each round
RUN/live/ or MODELS/live/                              what a service stored: posted events and items, exposures

Every path is that of a local folder or a URI, as the root is.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctxrec.core import storage

_VERSIONS = "versions"
CHECKPOINTS = "checkpoints"  # the name under which Ray Train knows the folder too


@dataclass(frozen=True)
class RunPaths:
    """Paths of a run, the folder that `ctxrec.train` writes."""

    root: str

    @property
    def config(self) -> str:
        return storage.join(self.root, "config.toml")

    @property
    def manifest(self) -> str:
        return storage.join(self.root, storage.MANIFEST)

    @property
    def metrics(self) -> str:
        return storage.join(self.root, "metrics.json")

    @property
    def report(self) -> str:
        return storage.join(self.root, "report.html")

    @property
    def requests(self) -> str:
        return storage.join(self.root, "requests.parquet")

    @property
    def stream(self) -> str:
        """The folder of the files of `ctxrec.evaluate --stream`."""
        return storage.join(self.root, "stream")

    @property
    def evaluated(self) -> str:
        return storage.join(self.root, "evaluated.txt")

    @property
    def train_log(self) -> str:
        return storage.join(self.root, "train_log.jsonl")

    @property
    def profile(self) -> str:
        return storage.join(self.root, "profile")

    @property
    def bundle(self) -> str:
        return storage.join(self.root, "bundle")

    @property
    def reranker(self) -> str:
        return storage.join(self.root, "reranker")

    @property
    def reranking(self) -> str:
        """What an unfinished training of the second stage goes on from."""
        return storage.join(self.root, "reranking")

    @property
    def live(self) -> str:
        return storage.join(self.root, "live")

    @property
    def checkpoints(self) -> str:
        return storage.join(self.root, CHECKPOINTS)

    @property
    def before(self) -> str:
        """The bundle of the model before its encoder was tuned, where tuning gained something."""
        return storage.join(self.root, CHECKPOINTS, "before")

    @property
    def tuned(self) -> str:
        """The bundle of the model after its encoder was tuned and before the refit, where both happened."""
        return storage.join(self.root, CHECKPOINTS, "tuned")

    @property
    def text_vectors(self) -> str:
        """Text vectors of the un-tuned encoder."""
        return storage.join(self.root, CHECKPOINTS, "text.safetensors")

    @property
    def user_text_vectors(self) -> str:
        """Vectors of the users' texts by the un-tuned encoder."""
        return storage.join(self.root, CHECKPOINTS, "user-texts.safetensors")

    @property
    def not_tuned(self) -> str:
        """Why the encoder was not tuned, in words; "" in it where a phase tuned it."""
        return storage.join(self.root, CHECKPOINTS, "not-tuned.json")

    @property
    def blend_ndcg(self) -> str:
        """Validation NDCG@10 of the blend that is exported; None in it where no blend was fitted."""
        return storage.join(self.root, CHECKPOINTS, "blend-ndcg.json")

    @property
    def media_vectors(self) -> str:
        """Vectors of images and sounds."""
        return storage.join(self.root, CHECKPOINTS, "media.safetensors")

    @property
    def pair_outcome(self) -> str:
        """What tuning the encoder on pairs of several logs came to."""
        return storage.join(self.root, CHECKPOINTS, "pairs.json")

    def best(self, phase: str) -> str:
        """The best weights of a phase so far."""
        return storage.join(self.root, CHECKPOINTS, f"best-{phase}.safetensors")

    def ablation(self, name: str) -> RunPaths:
        """The run that an ablation of this run trains."""
        return RunPaths(storage.join(self.root, "ablations", name))


@dataclass(frozen=True)
class BundlePaths:
    """Paths of a bundle (`ctxrec.bundle.format` says what each file holds)."""

    root: str

    @property
    def manifest(self) -> str:
        return storage.join(self.root, storage.MANIFEST)

    @property
    def config(self) -> str:
        return storage.join(self.root, "config.toml")

    @property
    def data(self) -> str:
        return storage.join(self.root, "data.json")

    @property
    def items(self) -> str:
        return storage.join(self.root, "items.parquet")

    @property
    def histories(self) -> str:
        return storage.join(self.root, "histories.arrow")

    @property
    def towers(self) -> str:
        return storage.join(self.root, "towers.safetensors")

    @property
    def vectors(self) -> str:
        return storage.join(self.root, "vectors.safetensors")

    @property
    def adapter(self) -> str:
        return storage.join(self.root, "adapter")

    @property
    def index(self) -> str:
        return storage.join(self.root, "index.faiss")

    @property
    def blend(self) -> str:
        return storage.join(self.root, "blend.safetensors")

    @property
    def live(self) -> str:
        return storage.join(self.root, "live.safetensors")

    @property
    def probability(self) -> str:
        return storage.join(self.root, "probability.safetensors")

    @property
    def backbone(self) -> str:
        return storage.join(self.root, "backbone")

    @property
    def media(self) -> str:
        return storage.join(self.root, "media.safetensors")


@dataclass(frozen=True)
class ModelsPaths:
    """Paths of a folder of published models, which `ctxrec.publish` writes."""

    root: str

    @property
    def current(self) -> str:
        return storage.join(self.root, "current.json")

    @property
    def experiment(self) -> str:
        return storage.join(self.root, "experiment.json")

    @property
    def live(self) -> str:
        return storage.join(self.root, "live")

    def decision(self, version: str) -> str:
        """The card of a version as JSON; the page beside it ends in .html."""
        return storage.join(self.root, "decisions", f"{version}.json")

    def version(self, name: str) -> BundlePaths:
        """The bundle of a published version."""
        return BundlePaths(storage.join(self.root, _VERSIONS, name))


def reranker_beside(bundle: str) -> str:
    """Where the second stage of a bundle lies: in the run of the bundle, or beside the published versions."""
    above = storage.parent(bundle)
    if above.rsplit("/", 1)[-1] != _VERSIONS:
        return RunPaths(above).reranker
    return storage.join(storage.parent(above), "rerankers", bundle.rstrip("/").rsplit("/", 1)[-1])


@dataclass(frozen=True)
class RefreshPaths:
    """Paths of the folder in which `ctxrec.refresh` works."""

    root: str

    @property
    def state(self) -> str:
        return storage.join(self.root, "state.json")

    @property
    def spec(self) -> str:
        """The dataset spec of a refresh that is given none: that of the version that was served at first."""
        return storage.join(self.root, "spec.json")

    @property
    def log(self) -> str:
        """What was read of the log before (`ctxrec.ingest.kept_log`)."""
        return storage.join(self.root, "log")

    def round(self, number: int) -> str:
        """All that a round makes."""
        return storage.join(self.root, f"round-{number:06d}")

    def look(self, number: int, when: str) -> str:
        """What the metrics of the service said at the start of a round ("begin") or before it published ("publish")."""
        return storage.join(self.round(number), f"service-{when}.json")

    def data(self, number: int) -> str:
        """What a round prepared."""
        return storage.join(self.round(number), "data")

    def complete(self, number: int) -> str:
        """The bundle that knows the events too by which the candidate of a round was judged."""
        return storage.join(self.round(number), "complete")

    def run(self, number: int) -> str:
        """What a round trained."""
        return storage.join(self.round(number), "run")
