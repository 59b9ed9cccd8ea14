"""Parses model names: released models, Hugging Face repositories, Kaggle models."""

from __future__ import annotations

import dataclasses
import difflib
import re
import urllib.parse
from typing import NoReturn

from gemma_tpu.checkpoint.errors import CheckpointError

SIZES = ("270m", "1b", "4b", "12b", "27b")
NAMES = tuple(f"gemma3-{size}-{variant}" for size in SIZES for variant in ("pt", "it"))
# Google's other models of the same architecture, for suggestions only: any repository name is accepted.
_RELATIVES = (
    *(f"google/medgemma-{name}" for name in ("4b-it", "4b-pt", "27b-it", "27b-text-it", "1.5-4b-it")),
    *(f"google/translategemma-{size}-it" for size in ("4b", "12b", "27b")),
    "google/functiongemma-270m-it",
    "google/shieldgemma-2-4b-it",
)
_SIMILARITY = 0.75  # difflib ratio; one or two letters of a name

_PART = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"({_PART}/{_PART})(?:@([\w][\w./-]*))?")
_KAGGLE = re.compile(rf"{_PART}/{_PART}/([A-Za-z]+)/{_PART}(?:/\d+)?")
_KAGGLE_FRAMEWORKS = ("flax", "transformers", "jax", "pytorch", "keras", "gemmacpp", "tflite", "gguf", "other")
_KAGGLE_SUPPORTED = ("flax", "jax", "transformers")


@dataclasses.dataclass(frozen=True)
class Released:
    """One of `NAMES`."""

    name: str

    @property
    def key(self) -> str:
        """The name of its directory in the cache."""
        return self.name

    @property
    def repo(self) -> str:
        """The repository on Hugging Face; the pretrained 270M has no "-pt" there."""
        return self.name.replace("gemma3", "google/gemma-3").replace("270m-pt", "270m")


@dataclasses.dataclass(frozen=True)
class Repository:
    """A Hugging Face repository, "owner/name"; `revision` is a branch, a tag or a commit."""

    repo: str
    revision: str | None = None

    @property
    def key(self) -> str:
        at = f"@{self.revision.replace('/', '--')}" if self.revision else ""
        return self.repo.replace("/", "--") + at


@dataclasses.dataclass(frozen=True)
class KaggleModel:
    """A Kaggle model, "owner/model/framework/variation[/version]"."""

    handle: str

    @property
    def key(self) -> str:
        return f"kaggle--{self.handle.replace('/', '--')}"


Name = Released | Repository | KaggleModel


def parse(text: str) -> Name | None:
    """Parses a name by its syntax alone; None if it is not a name.

    "google/gemma-3-4b-it" is the released model, which has other sources besides Hugging Face; its URL, or a name with
    a revision, is the repository. Raises `CheckpointError` for a URL that is not a model's.
    """
    if re.match(r"[a-z][a-z0-9+.-]*://", text) or re.match(r"(www\.)?(huggingface\.co|hf\.co|kaggle\.com)/", text):
        return _from_url(text)
    if (name := re.sub(r"^(google/)?gemma-?3-", "gemma3-", text.lower())) in NAMES:
        return Released(name)
    if text.lower() == "google/gemma-3-270m":
        return Released("gemma3-270m-pt")
    if match := _KAGGLE.fullmatch(text):
        return _kaggle(text) if match[1].lower() in _KAGGLE_FRAMEWORKS else None
    if (match := _REPOSITORY.fullmatch(text)) and ".." not in text:
        return Repository(match[1], match[2])
    return None


def _from_url(text: str) -> Name:
    """The model at a hub's URL, which may also point to a revision or a file."""
    url = urllib.parse.urlsplit(text if "://" in text else f"https://{text}")
    if url.scheme not in ("http", "https", "hf"):
        raise CheckpointError(f"{text}: only local paths, gs:// and the pages of hubs can be read")
    host = (url.hostname or "").removeprefix("www.")
    path = urllib.parse.unquote(url.path).strip("/")
    if url.scheme == "hf":  # hf://owner/name
        host, path = "huggingface.co", f"{url.netloc}/{path}".strip("/")
    if host in ("huggingface.co", "hf.co"):
        owner, name, *rest = [*path.split("/"), ""]
        if owner not in ("datasets", "spaces", "collections") and (match := _REPOSITORY.fullmatch(f"{owner}/{name}")):
            revision = rest[1] if rest[:1] in (["tree"], ["blob"], ["resolve"]) and len(rest) > 2 else match[2]
            return Repository(match[1], revision)
    if host == "kaggle.com" and (match := re.match(r"(?:m|models)/(.+)", path)):
        handle = re.sub(r"/versions/", "/", match[1])
        if _KAGGLE.fullmatch(handle):
            return _kaggle(handle)
    raise CheckpointError(
        f"{text}: no address of a model: give that of its page at Hugging Face (https://huggingface.co/OWNER/NAME) or "
        "Kaggle (https://www.kaggle.com/models/OWNER/MODEL/flax/VARIATION), or a directory with its files"
    )


def _kaggle(handle: str) -> KaggleModel:
    owner, model, framework, *rest = handle.split("/")
    if framework.lower() not in _KAGGLE_SUPPORTED:
        raise CheckpointError(
            f"{handle}: Kaggle's {framework} files are not read here: take the same model under "
            f"{owner}/{model}/flax or {owner}/{model}/transformers"
        )
    return KaggleModel("/".join((owner, model, framework.lower(), *rest)))


def suggestion(text: str) -> str:
    """ "; did you mean …?" if `text` is close to a known name, else an empty string."""
    known = {name: name for name in (*NAMES, *_RELATIVES)}
    known |= {Released(name).repo: Released(name).repo for name in NAMES}
    known |= {name.removeprefix("google/"): name for name in _RELATIVES}
    if text in known.values():
        return ""
    close = difflib.get_close_matches(text.lower().partition("@")[0], known, n=2, cutoff=_SIMILARITY)
    names = list(dict.fromkeys(known[name] for name in close))
    return f"; did you mean {' or '.join(names)}?" if names else ""


def refuse_unknown(text: str) -> NoReturn:
    """Raises `CheckpointError` for text that is neither an existing path nor a name."""
    raise CheckpointError(
        f"{text}: no such file or directory, and no name of a released model{suggestion(text) or '.'} The released "
        f"ones are {', '.join(NAMES)}; any other model of Hugging Face is named OWNER/NAME"
    )
