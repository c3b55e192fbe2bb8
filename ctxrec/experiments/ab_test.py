"""A/B tests of published models: a user gets the same version in every request and from every replica.

MODELS/experiment.json   the running test, written by `ctxrec.publish`; without it all users get the current version
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass

from ctxrec.bundle.format import check_bundle
from ctxrec.bundle.publish_lock import publishing
from ctxrec.bundle.registry import add, read_published, version_folder
from ctxrec.core import storage
from ctxrec.core.errors import UserError
from ctxrec.core.manifest import is_version
from ctxrec.core.run_paths import ModelsPaths
from ctxrec.core.toml import build_dataclass

CONTROL = "control"  # the arm of all users that no other arm has; gets the current version
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A version and the share of the users that get it."""

    name: str
    version: str
    share: float

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == CONTROL:
            raise UserError(f"arm is {self.name!r}; expected letters, digits, ., - or _, and not {CONTROL!r}")
        if not 0 < self.share < 1:
            raise UserError(f"share of arm {self.name!r} is {self.share}; expected above 0 and below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """A test: its arms besides the control."""

    name: str
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(f"experiment is {self.name!r}; expected letters, digits, ., - or _")
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise UserError(f"experiment {self.name!r} has the arms {names}; expected one or more of different names")
        if sum(arm.share for arm in self.arms) >= 1:
            raise UserError(f"the arms of experiment {self.name!r} take all users; expected a share for {CONTROL}")

    def arm_of(self, unit: str) -> Arm | None:
        """The arm of a user, or of a request without a user id; None is the control.

        A hash of the unit and of the experiment's name gives a number from 0 to 1, which falls into the share of one arm.
        Arms of different experiments are therefore independent. If the share of the last arm grows, all of its new users
        come from the control.
        """
        digest = hashlib.sha256(f"{self.name}\0{unit}".encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        for arm in self.arms:
            place -= arm.share
            if place < 0:
                return arm
        return None

    def share_of(self, arm: Arm | None) -> float:
        return 1 - sum(a.share for a in self.arms) if arm is None else arm.share


def read_experiment(models: str) -> Experiment | None:
    """The test that runs on a folder of published models; None without one.

    Raises:
        UserError: `experiment.json` is damaged.
    """
    path = ModelsPaths(models).experiment
    if not storage.exists(path):
        return None
    try:
        test: Experiment = build_dataclass(Experiment, storage.read_json(path), source=path)
        for arm in test.arms:
            if not is_version(arm.version):
                raise UserError(f"{path}: the version of arm {arm.name!r} is {arm.version!r}; expected a published one")
    except UserError as error:
        told = str(error) if path in str(error) else f"{path}: {error}"
        raise UserError(f"{told}; remove it with ctxrec publish --to {models} --end-test") from error
    return test


def start(
    bundle: str | None, models: str, *, name: str, arm: str, share: float, version: str | None = None
) -> Experiment:
    """Give a version to a share of the users, as an arm of the test `name`.

    An arm that exists already gets the new share.

    Args:
        bundle: path or URI of the bundle that is published for the arm; None: `version` is published already.
        models: folder of published models.
        name: name of the test; one test runs at a time.
        arm: name of the arm.
        share: share of the users, above 0 and below 1.
        version: the published version, if there is no bundle.

    Raises:
        UserError: another test runs, the bundle is damaged, or a name or share does not fit; nothing has changed.
    """
    read_published(models)
    with publishing(models):
        return _start(bundle, models, name=name, arm=arm, share=share, version=version)


def _start(bundle: str | None, models: str, *, name: str, arm: str, share: float, version: str | None) -> Experiment:
    now = read_published(models)
    running = read_experiment(models)
    if running is not None and running.name != name:
        raise UserError(f"{models} runs the test {running.name!r}; end it with --end-test before {name!r} starts")
    arms = {a.name: a for a in (running.arms if running is not None else ())}
    Experiment(name=name, arms=tuple((arms | {arm: Arm(name=arm, version="", share=share)}).values()))
    if bundle is not None:
        version = add(bundle, models)
    elif version is None and arm in arms:
        version = arms[arm].version
    if version is None:
        raise UserError(f"arm {arm!r} has no version yet; give it one with --run or --version")
    check_bundle(version_folder(models, version), scratch=storage.temporary_folder())
    if version == now.version:
        raise UserError(f"{version} is what {models} serves to everybody; expected another version for arm {arm!r}")
    made = Experiment(name=name, arms=tuple((arms | {arm: Arm(name=arm, version=version, share=share)}).values()))
    storage.write_json(ModelsPaths(models).experiment, asdict(made))
    return made


def end(models: str) -> Experiment:
    """Give all users the current version again; returns the test that has ended.

    Raises:
        UserError: no test runs.
    """
    path = ModelsPaths(models).experiment
    if storage.exists(path):
        with publishing(models):
            try:
                running = read_experiment(models)
            except UserError as error:
                storage.delete(path)
                raise UserError(f"a damaged test was removed, so no test runs now ({error})") from error
            storage.delete(path)
    else:
        running = None
    if running is None:
        raise UserError(f"no test runs on {models}; start one with ctxrec publish --test NAME --share SHARE")
    return running
