"""One opened bundle, ready to answer: its runners, batchers and models.

A server holds one, and for a moment two when the bundle is swapped: the old one answers what it has
taken and is closed when nobody uses it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from mmprod.bundle import Bundle, open_bundle
from mmprod.errors import ConfigError, IntegrityError, MmprodError
from mmprod.graphs.codec_facts import CodecFacts
from mmprod.manifest import sha256_file
from mmprod.sampling import Tokens
from mmprod.serving.batcher import Batcher
from mmprod.serving.choose import Opened, open_runners
from mmprod.serving.friendly import bind
from mmprod.serving.graph_model import GraphModel, ServedGraph
from mmprod.serving.kit import Kit, Searcher
from mmprod.serving.metrics import Metrics
from mmprod.serving.model import Model, Step
from mmprod.serving.refusal import unknown
from mmprod.serving.settings import Settings
from mmprod.serving.shadow import Shadow, check_reference

VERSION = "1"
"""Of every model: a server has one bundle at a time."""


@dataclass(frozen=True)
class Identity:
    """Which bundle this is: its name and the SHA-256 of its bundle.json."""

    name: str
    sha256: str


class Deployment:
    """Models by name. `close` waits until the last user has left."""

    def __init__(
        self,
        identity: Identity,
        graphs: Mapping[str, ServedGraph],
        models: Mapping[str, Model],
        pool: ThreadPoolExecutor,
        shadow: Shadow | None,
    ) -> None:
        self.identity, self.graphs, self.models = identity, graphs, models
        self._pool, self._shadow = pool, shadow
        self._users = 0
        self._left = threading.Condition()

    def model(self, name: str, version: str = "") -> Model:
        """Raises Refused for a model or version that is not there."""
        if name not in self.models:
            raise unknown("there is no such model; GET /v2/models lists them")
        if version not in ("", VERSION):
            raise unknown(f"the model has the version {VERSION} only")
        return self.models[name]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the deployment stays open."""
        with self._left:
            self._users += 1
        try:
            yield
        finally:
            with self._left:
                self._users -= 1
                self._left.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Wait for users, then free everything. False when some were still there."""
        with self._left:
            empty = self._left.wait_for(lambda: self._users == 0, timeout_s)
        self._pool.shutdown(wait=empty, cancel_futures=True)
        for graph in self.graphs.values():
            graph.batcher.close()
        if self._shadow:
            self._shadow.close()
        return empty


def open_deployment(
    settings: Settings, metrics: Metrics, searcher: Searcher | None = None
) -> Deployment:
    """Verify the whole bundle, open its runners, make the models. Raises as `open_bundle` and
    `choose.open_runners` do; nothing stays open then.
    """
    bundle = open_bundle(settings.bundle.resolve())  # a link may point elsewhere a moment later
    if strange := sorted(set(settings.batching.waits) - set(bundle.specs)):
        raise ConfigError(
            f"--batch-wait-ms names {', '.join(strange)}, which is no graph",
            hint=f"graphs: {', '.join(bundle.specs)}",
        )
    if settings.shadow:
        check_reference(bundle)
    words = _words(bundle, searcher)
    opened = open_runners(bundle, settings)
    if searcher:
        _check_index(searcher, bundle, opened)
    shadow = Shadow(bundle, metrics) if settings.shadow else None
    graphs = {name: _served(found, settings, metrics, shadow) for name, found in opened.items()}
    threads = settings.limits.friendly_threads
    pool = ThreadPoolExecutor(threads, thread_name_prefix="friendly")
    models: list[Model] = [GraphModel(graph) for graph in graphs.values()]
    if words:
        sizes = bundle.dims, bundle.sampler
        models[:0] = bind(Kit(*sizes, graphs, *words, settings.limits, searcher), pool, threads)
    identity = Identity(bundle.name, sha256_file(bundle.root / "bundle.json"))
    return Deployment(identity, graphs, {model.name: model for model in models}, pool, shadow)


def _check_index(searcher: Searcher, bundle: Bundle, opened: Mapping[str, Opened]) -> None:
    """Close what is open where the index is of another model."""
    try:
        searcher.check(bundle, {name: found.precision for name, found in opened.items()})
    except MmprodError:
        for found in opened.values():
            found.runner.close()
        raise


def _served(
    opened: Opened, settings: Settings, metrics: Metrics, shadow: Shadow | None
) -> ServedGraph:
    name = opened.runner.spec.name
    batcher = Batcher(opened.runner, settings.batching, metrics.observer(name))
    metrics.waiting.labels(name).set_function(lambda: batcher.waiting)
    step = Step(name, opened.runner.backend, opened.precision, opened.sha256)
    return ServedGraph(batcher, step, settings.shadow, shadow.offer if shadow else None)


def _words(bundle: Bundle, searcher: Searcher | None) -> tuple[Tokens, CodecFacts] | None:
    """Tokenizer and facts of the codec; None for a bundle without: its graphs are served alone."""
    from mmprod.data.tokenizer import Tokenizer

    tokenizers, codecs = bundle.artefacts(role="tokenizer"), bundle.artefacts(role="codec")
    if tokenizers and codecs:
        facts = CodecFacts.load(bundle.path(codecs[0]), bundle.dims.codebook_size)
        return Tokenizer.load(bundle.path(tokenizers[0])), facts
    if searcher:
        raise IntegrityError(
            f"{bundle.root} has no tokenizer or no codec facts, which search needs",
            hint="export the run again",
        )
    return None
